#pragma once

namespace espalier {

/// Teaches problems_of (core/error.h) LibTorch's exceptions: memory that ran out on the host or a
/// GPU is `unsuitable`, everything else internal with LibTorch's words without its backtrace. To be
/// called once, before the first tensor.
void register_torch_errors();

}  // namespace espalier
