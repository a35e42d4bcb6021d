// Where the rows of one (sequence, head) lie, and which keys its queries see.
#pragma once

#include "attention_tiles.h"
#include "dove/attention.h"

namespace dove::cpu::DOVE_ISA {

// Which rows of an operand one (sequence, head) owns.
template <class Element>
struct Rows {
  Element* data;
  int64_t stride;
  Element* operator[](int64_t row) const { return data + row * stride; }
};

struct Sequence {
  int64_t start_q, start_k;  // first row in the packed operand; 0 when padded
  int64_t len_q, len_k;
  int64_t offset;  // position of query 0
  int64_t prefix, limit;

  // Keys [0, visible) are what query i sees. Never falls with i.
  int64_t visible(int64_t i) const { return larger(0, smaller(limit, larger(offset + i + 1, prefix))); }
};

static inline Sequence sequence_of(const AttentionArgs& a, int64_t b) {
  Sequence s{0, 0, a.len_q, a.len_k, 0, a.prefix, a.len_k};
  if (a.cu_seqlens_q != nullptr) {
    s.start_q = a.cu_seqlens_q[b];
    s.start_k = a.cu_seqlens_k[b];
    s.len_q = a.cu_seqlens_q[b + 1] - s.start_q;
    s.len_k = s.limit = a.cu_seqlens_k[b + 1] - s.start_k;
  }
  if (a.kv_lens != nullptr) s.limit = a.kv_lens[b];
  s.offset = s.len_k - s.len_q;
  if (s.prefix >= s.len_k) s.offset = larger(0, s.offset);  // the keys are the first of the queries' positions
  return s;
}

template <class Element>
static inline Rows<Element> rows_of(const AttentionRows& r, int64_t b, int64_t start, int64_t head) {
  return {static_cast<Element*>(r.data) + b * r.stride_b + start * r.stride_n + head * r.stride_h, r.stride_n};
}

static inline float* lse_of(const AttentionArgs& a, const Sequence& s, int64_t b, int64_t head) {
  const int64_t row = a.cu_seqlens_q != nullptr ? head : b * a.heads + head;
  return a.lse + row * a.len_q + s.start_q;
}

// Hands out pieces of a thread's workspace, each aligned to a cache line.
struct Scratch {
  uintptr_t next;  // from 0 on, where only the size of all pieces is wanted
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += static_cast<uintptr_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
};

}  // namespace dove::cpu::DOVE_ISA
