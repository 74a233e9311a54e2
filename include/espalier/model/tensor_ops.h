#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/comm/tensor_reducer.h"
#include "espalier/core/dtype.h"
#include "espalier/store/tensor_layout.h"

namespace espalier {

at::ScalarType to_scalar_type(DType dtype);
DType to_dtype(at::ScalarType type);

/// Sums `tensor` over the ranks of `reducer`, in place. Collective. What the reducer does not take
/// as it is goes as the first of these that it takes: 16-bit floats as float32 where they lie; a
/// copy in (pinned) host memory; that, as float32. Counts as a change of the tensor for autograd: a
/// graph that saved its value throws when it is differentiated.
void all_reduce_sum(at::Tensor& tensor, TensorReducer& reducer);
/// Element-wise maximum over the ranks, in place. Collective.
void all_reduce_max(at::Tensor& tensor, TensorReducer& reducer);

/// The parts of a tensor that the ranks hold along `dim`, of which `part` is this rank's, put
/// together on every rank: `mine` of `all`. On one rank the part itself. Collective.
at::Tensor gathered(const at::Tensor& part, std::int64_t dim, const Range& mine, std::int64_t all,
                    TensorReducer& reducer);

/// The entries of `dim` named by `indices`, as new contiguous storage; the tensor itself when they
/// are all. A single run is a plain copy, several are one index_select.
at::Tensor take(const at::Tensor& tensor, std::int64_t dim, const IndexRuns& indices);

/// All elements finite. Reads the device once.
bool all_finite(const at::Tensor& tensor);
/// A boolean on the tensor's device: whether the sum of all elements, in float32 or wider, is
/// finite. NaN and infinities survive a sum, which needs no tensor of flags; it is also false when
/// the sum itself leaves the range of float32.
at::Tensor finite_flag(const at::Tensor& tensor);

/// The values as doubles on the host, in row-major order.
std::vector<double> to_doubles(const at::Tensor& tensor);

}  // namespace espalier
