// A plain struct as a Python class: what its keyword constructor is not told of is zero; fields can be read and set.
//
// In Python a pointer is an address (0: null), a dtype its number, an array a tuple, and AttentionRows are
// (address, stride_b, stride_n, stride_h). Nothing is kept alive: dove_ext/ops/library.py holds the tensors.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "bindings.h"
#include "dove/attention.h"

namespace dove::bindings {

template <class T>
py::object read(const T& field) {
  if constexpr (std::is_same_v<T, AttentionRows>) {
    return py::make_tuple(read(field.data), field.stride_b, field.stride_n, field.stride_h);
  } else if constexpr (std::is_array_v<T>) {
    py::tuple values(std::extent_v<T>);
    for (size_t i = 0; i < values.size(); ++i) values[i] = read(field[i]);
    return values;
  } else if constexpr (std::is_pointer_v<T>) {
    return py::int_(reinterpret_cast<uintptr_t>(field));
  } else if constexpr (std::is_enum_v<T>) {
    return py::int_(static_cast<int>(field));
  } else {
    return py::cast(field);
  }
}

template <class T>
void write(T& field, const py::handle& value) {
  if constexpr (std::is_same_v<T, AttentionRows>) {
    const auto rows = value.cast<py::tuple>();
    if (rows.size() != 4) throw py::value_error("expected (address, stride_b, stride_n, stride_h)");
    write(field.data, rows[0]);
    write(field.stride_b, rows[1]);
    write(field.stride_n, rows[2]);
    write(field.stride_h, rows[3]);
  } else if constexpr (std::is_array_v<T>) {
    const auto values = value.cast<py::tuple>();
    if (values.size() != std::extent_v<T>) throw py::value_error("expected one address for each of the array");
    for (size_t i = 0; i < values.size(); ++i) write(field[i], values[i]);
  } else if constexpr (std::is_pointer_v<T>) {
    field = reinterpret_cast<T>(value.cast<uintptr_t>());
  } else if constexpr (std::is_enum_v<T>) {
    field = static_cast<T>(value.cast<int>());
  } else {
    field = value.cast<T>();
  }
}

template <class T>
py::object read_at(const char* field) {
  return read(*reinterpret_cast<const T*>(field));
}

template <class T>
void write_at(char* field, const py::handle& value) {
  write(*reinterpret_cast<T*>(field), value);
}

// Where a field lies in its struct, and what reads and writes one of its type. The accessors know no more, so that the
// compiler makes them once and not for every type of every struct, which takes it ten times as long.
struct Field {
  size_t offset;
  py::object (*get)(const char*);
  void (*set)(char*, const py::handle&);
};

using Fields = std::unordered_map<std::string, Field>;

// The struct within a Python object: `cast` is that of its class.
inline void bind_field(py::object& type, const char* name, Field field, char* (*cast)(const py::handle&)) {
  const py::cpp_function get([=](const py::handle& self) { return field.get(cast(self) + field.offset); });
  const py::cpp_function set(
      [=](const py::handle& self, const py::handle& value) { field.set(cast(self) + field.offset, value); });
  type.attr(name) = py::module_::import("builtins").attr("property")(get, set);
}

inline void fill(char* args, const char* name, const py::kwargs& values, const Fields& fields) {
  for (const auto& [key, value] : values) {
    const auto field = fields.find(py::cast<std::string>(key));
    if (field == fields.end()) {
      throw py::type_error(std::string(name) + " has no field '" + py::cast<std::string>(key) + "'");
    }
    field->second.set(args + field->second.offset, value);
  }
}

// Local to the module (py::module_local): the emulation of tests/simt is a second module with the same classes.
template <class Args>
class Struct {
 public:
  Struct(py::module_& m, const char* name, const char* header)
      : type_(m, name, (std::string("Arguments of a kernel; see ") + header).c_str(), py::module_local()) {
    // One call for all fields: a property costs Python several times as much.
    type_.def(py::init([name](const py::kwargs& values) {
      Args args{};
      fill(reinterpret_cast<char*>(&args), name, values, fields());
      return args;
    }));
  }

  template <class T>
  Struct& field(const char* name, T Args::* member) {
    static const Args args{};
    const auto offset = reinterpret_cast<const char*>(&(args.*member)) - reinterpret_cast<const char*>(&args);
    return add(name, {static_cast<size_t>(offset), read_at<T>, write_at<T>});
  }

 private:
  Struct& add(const char* name, Field field) {
    static_assert(std::is_standard_layout_v<Args>);
    fields()[name] = field;
    bind_field(type_, name, field, [](const py::handle& self) { return reinterpret_cast<char*>(&self.cast<Args&>()); });
    return *this;
  }

  static Fields& fields() {
    static Fields by_name;
    return by_name;
  }

  py::class_<Args> type_;
};

}  // namespace dove::bindings
