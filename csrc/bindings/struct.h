// A plain struct as a Python class: what its keyword constructor is not told of is zero; fields can be read and set.
//
// In Python a pointer is an address (0: null), a dtype its number, an array a tuple, and AttentionRows are
// (address, stride_b, stride_n, stride_h). Nothing is kept alive: dove_ext/ops/library.py holds the tensors.
#pragma once

#include <functional>
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

// Local to the module (py::module_local): the emulation of tests/simt is a second module with the same classes.
template <class Args>
class Struct {
 public:
  Struct(py::module_& m, const char* name, const char* header)
      : type_(m, name, (std::string("Arguments of a kernel; see ") + header).c_str(), py::module_local()) {
    // One call for all fields: a property costs Python several times as much.
    type_.def(py::init([name](const py::kwargs& fields) {
      Args args{};
      for (const auto& [field, value] : fields) {
        const auto setter = setters().find(py::cast<std::string>(field));
        if (setter == setters().end()) {
          throw py::type_error(std::string(name) + " has no field '" + py::cast<std::string>(field) + "'");
        }
        setter->second(args, value);
      }
      return args;
    }));
  }

  template <class T>
  Struct& field(const char* name, T Args::* member) {
    const auto set = [member](Args& args, const py::handle& value) { write(args.*member, value); };
    setters()[name] = set;
    type_.def_property(name, [member](const Args& args) { return read(args.*member); }, set);
    return *this;
  }

 private:
  static auto& setters() {
    static std::unordered_map<std::string, std::function<void(Args&, const py::handle&)>> by_name;
    return by_name;
  }

  py::class_<Args> type_;
};

}  // namespace dove::bindings
