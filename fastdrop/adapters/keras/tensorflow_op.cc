// Dropout as an operation of TensorFlow, over fastdrop_api.h. tensorflow.py compiles it.
#include "fastdrop_api.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include <vector>

using namespace tensorflow;

static const fastdrop_api *api;

extern "C" void fastdrop_use(const fastdrop_api *given) { api = given; }

REGISTER_OP("FastdropDropout")
    .Input("x: T")
    .Input("draw: int64") // seed, call
    .Input("rate: double")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("shared_axes: list(int)")
    .Output("y: T")
    .SetShapeFn(shape_inference::UnchangedShape);

template <int dtype> class Dropout : public OpKernel {
  public:
    explicit Dropout(OpKernelConstruction *context) : OpKernel(context)
    {
        std::vector<int32> axes;
        OP_REQUIRES_OK(context, context->GetAttr("shared_axes", &axes));
        for (int axis : axes)
            shared |= uint64_t(1) << axis;
    }

    // Handed to another thread, a small one would take longer.
    bool IsExpensive() override { return false; }

    void Compute(OpKernelContext *context) override
    {
        const Tensor &x = context->input(0);
        const auto draw = context->input(1).flat<int64_t>();
        const double p = context->input(2).scalar<double>()();
        Tensor *y = nullptr;
        OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
        const uint64_t seed = uint64_t(draw(0)), call = uint64_t(draw(1));
        if (!shared) {
            api->forward(dtype, x.data(), y->data(), nullptr, size_t(x.NumElements()), 0, seed, call, p);
            return;
        }
        std::vector<int64_t> shape, start(size_t(x.dims()), 0);
        for (int d = 0; d < x.dims(); d++)
            shape.push_back(x.dim_size(d));
        const int failed = api->region(dtype, x.data(), y->data(), x.dims(), shape.data(), start.data(),
                                       shape.data(), shared, seed, call, p);
        OP_REQUIRES(context, !failed, errors::ResourceExhausted("no memory for a mask"));
    }

  private:
    uint64_t shared = 0;
};

#define KERNEL(type, dtype)                                                                      \
    REGISTER_KERNEL_BUILDER(Name("FastdropDropout").Device(DEVICE_CPU).TypeConstraint<type>("T"), \
                            Dropout<dtype>)
KERNEL(float, FASTDROP_FLOAT32);
KERNEL(double, FASTDROP_FLOAT64);
KERNEL(Eigen::half, FASTDROP_FLOAT16);
KERNEL(bfloat16, FASTDROP_BFLOAT16);
