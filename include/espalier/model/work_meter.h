#pragma once

namespace espalier {

/// What LibTorch was asked for: counted where it dispatches, never computed from shapes of a model.
struct Work {
  /// 2 m n k of every product of two matrices [m, k] [k, n], which all linear maps come to, in both
  /// directions; batched products, of which attention is made, are not among them.
  double flops = 0;
  /// Spent in those outside of autograd's way back, and on it. Of a device that computes
  /// asynchronously only the time to ask.
  double forward_seconds = 0;
  double backward_seconds = 0;
  /// Spent in attention and in batched products.
  double attention_seconds = 0;
};

/// Counts from its birth what this process asks of LibTorch, whichever of its threads asks: about a
/// microsecond per operation. There may be one at a time.
class WorkMeter {
 public:
  WorkMeter();
  ~WorkMeter();
  WorkMeter(const WorkMeter&) = delete;
  WorkMeter& operator=(const WorkMeter&) = delete;
  Work work() const;

 private:
  unsigned long handle_;
};

}  // namespace espalier
