//! Every kernel, run by the [`Emulator`], against the operation on the processor: results and gradients, in f32 and bf16.

use super::emulator::{Buffer, Emulator};
use super::machine::{Kernels, Kind, Source, args};
use super::programs::{AdamWFactors, AttentionGiven, AttentionSizes, CrossEntropyInputs};
use super::programs::{PlaneNorm, PlaneNormInputs, PoolSizes, ResizeSizes};
use crate::base::Rng;
use crate::nn::conv::Sizes;
use crate::nn::norm::{GroupNormOp, batch_norm, group_norm, layer_norm};
use crate::nn::{self, ConvSpec, backward_from};
use candle_core::{DType, Device, Result, Tensor, Var};

mod compiled;
mod sampling;

type Kernel<'m> = Kernels<'m, Emulator>;

fn in_each_type(test: impl Fn(&Kernel)) {
    let Some(machine) = Emulator::new() else { return };
    for values in [Kind::F32, Kind::Bf16] {
        test(&Kernels { machine: &machine, values });
    }
}

/// Random values of the kernels' type, on the processor in f32.
fn draw(k: &Kernel, name: &str, shape: &[usize]) -> Tensor {
    let dtype = if k.values == Kind::Bf16 { DType::BF16 } else { DType::F32 };
    floats(name, shape).to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
}

fn floats(name: &str, shape: &[usize]) -> Tensor {
    Rng::stream(7, name, &[]).normal_tensor(shape, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// In the kernels' type.
fn up(k: &Kernel, tensor: &Tensor) -> Buffer {
    Buffer::from_values(&numbers(tensor), k.values)
}

fn up_floats(tensor: &Tensor) -> Buffer {
    Buffer::from_values(&numbers(tensor), Kind::F32)
}

/// Equal up to rounding, relatively to the largest expected value.
fn same(k: &Kernel, what: &str, found: &Buffer, expected: &Tensor) {
    let (found, expected) = (found.values(), numbers(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    let tolerance = if k.values == Kind::Bf16 { 1e-2 } else { 3e-6 };
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}, {:?}, value {i}: {a} instead of {b} (largest {largest})",
            k.values
        );
    }
}

/// The result on the processor, and the gradients of the arguments when `gradient` comes back.
fn expected(args: &[&Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>, gradient: impl Fn(&[usize]) -> Tensor) -> Vec<Tensor> {
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = op(&tensors).unwrap();
    let gradient = gradient(out.dims());
    let store = backward_from(&[(&out, gradient.clone())]).unwrap();
    let gradients = vars.iter().map(|var| store.get(var).unwrap().clone());
    [out.detach(), gradient].into_iter().chain(gradients).collect()
}

#[test]
fn activations() {
    let ops: [fn(&Tensor) -> Result<Tensor>; 6] = [nn::gelu, nn::quick_gelu, nn::silu, nn::relu, nn::relu6, nn::sigmoid];
    in_each_type(|k| {
        for (i, op) in ops.iter().enumerate() {
            let xs = (draw(k, "xs", &[37, 29]) * 4.0).unwrap();
            let results = expected(&[&xs], |a| op(&a[0]), |shape| draw(k, "g", shape));
            let (xs, g) = (up(k, &xs), up(k, &results[1]));
            same(k, &format!("activation {i}"), &k.activation(&xs, 37 * 29, i).unwrap(), &results[0]);
            same(k, &format!("activation {i}, gradient"), &k.activation_gradient(&xs, &g, 37 * 29, i).unwrap(), &results[2]);
        }
        let xs = draw(k, "xs", &[9, 62]);
        let results = expected(&[&xs], |a| nn::geglu(&a[0]), |shape| draw(k, "g", shape));
        same(k, "geglu", &k.geglu(&up(k, &xs), 9, 31).unwrap(), &results[0]);
        same(k, "geglu gradient", &k.geglu_gradient(&up(k, &xs), &up(k, &results[1]), 9, 31).unwrap(), &results[2]);
    });
}

#[test]
fn softmax() {
    in_each_type(|k| {
        for (rows, width) in [(1, 1), (9, 31), (3, 700)] {
            let xs = draw(k, "xs", &[rows, width]);
            let results = expected(&[&xs], |a| nn::softmax(&a[0]), |shape| draw(k, "g", shape));
            let out = k.softmax(&up(k, &xs), rows, width).unwrap();
            same(k, "softmax", &out, &results[0]);
            let gradient = k.softmax_gradient(&out, &up(k, &results[1]), rows, width).unwrap();
            if width > 1 {
                same(k, "softmax gradient", &gradient, &results[2]);
            }
        }
    });
}

#[test]
fn sums_and_biases() {
    in_each_type(|k| {
        for (rows, width) in [(1, 3), (300, 70), (17000, 5)] {
            let xs = draw(k, "xs", &[rows, width]);
            same(k, "column sums", &k.column_sums(&up(k, &xs), rows, width).unwrap(), &xs.sum(0).unwrap());
        }
        let (xs, bias) = (draw(k, "xs", &[2, 5, 301]), floats("bias", &[1, 5, 1]));
        same(k, "channel sums", &k.channel_sums(&up(k, &xs), 2, 5, 301).unwrap(), &xs.sum((0, 2)).unwrap());
        let out = up(k, &xs);
        k.add_bias(&out, &up_floats(&bias), 2 * 5 * 301, 5, 301).unwrap();
        same(k, "bias", &out, &xs.broadcast_add(&bias).unwrap());
    });
}

#[test]
fn layer_norms() {
    in_each_type(|k| {
        for (rows, width) in [(1, 5), (70, 67), (300, 320)] {
            // Far from 0: the variance must not be the difference of two large numbers.
            let xs = (draw(k, "xs", &[rows, width]) + 16.0).unwrap();
            let xs = if k.values == Kind::Bf16 { draw(k, "xs", &[rows, width]) } else { xs };
            let (weight, bias) = (floats("w", &[width]), floats("b", &[width]));
            let results =
                expected(&[&xs, &weight, &bias], |a| layer_norm(&a[0], &a[1], &a[2], 1e-5), |shape| draw(k, "g", shape));
            let (xs, w) = (up(k, &xs), up_floats(&weight));
            let out = k.layer_norm(&xs, &w, &up_floats(&bias), (rows, width), 1e-5).unwrap();
            far(k, "layer norm", &out, &results[0]);
            let (for_xs, rest) = k.layer_norm_gradient(&xs, &w, &up(k, &results[1]), (rows, width), 1e-5).unwrap();
            far(k, "layer norm, inputs", &for_xs, &results[2]);
            far(k, "layer norm, weight and bias", &rest, &Tensor::cat(&results[3..], 0).unwrap());
        }
    });
}

/// Like [`same`] for inputs far from 0, whose f32 have fewer digits left after the mean is taken off.
fn far(k: &Kernel, what: &str, found: &Buffer, expected: &Tensor) {
    let (a, b) = (found.values(), numbers(expected));
    let tolerance = if k.values == Kind::Bf16 { 1e-2 } else { 3e-5 };
    let largest = b.iter().fold(0f32, |a, b| a.max(b.abs()));
    let worst = a.iter().zip(&b).fold(0f32, |worst, (a, b)| if a.is_nan() { f32::INFINITY } else { worst.max((a - b).abs()) });
    assert!(a.len() == b.len() && worst <= tolerance * largest, "{what}, {:?}: {worst} of {largest}", k.values);
}

/// Statistics, result and gradients of a norm over planes.
fn check_plane_norm(k: &Kernel, what: &str, shape: [usize; 3], norm: PlaneNorm, op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let (xs, weight, bias) = (draw(k, "xs", &shape), floats("w", &[shape[1]]), floats("b", &[shape[1]]));
    let results = expected(&[&xs, &weight, &bias], op, |shape| draw(k, "g", shape));
    let (xs, weight, bias) = (up(k, &xs), up_floats(&weight), up_floats(&bias));
    let (mean, variance) = k.plane_statistics(&xs, norm).unwrap();
    let given = PlaneNormInputs { xs: &xs, mean: &mean, variance: &variance, weight: &weight, bias: &bias };
    same(k, what, &k.plane_norm(&given, norm).unwrap(), &results[0]);
    let (for_xs, rest) = k.plane_norm_gradient(&given, &up(k, &results[1]), norm).unwrap();
    same(k, &format!("{what}, inputs"), &for_xs, &results[2]);
    same(k, &format!("{what}, weight and bias"), &rest, &Tensor::cat(&results[3..], 0).unwrap());
}

#[test]
fn group_norms() {
    in_each_type(|k| {
        for (batch, channels, groups, size) in [(1, 4, 4, 9), (2, 6, 3, 143), (2, 6, 1, 700), (1, 1, 1, 40)] {
            for silu in [false, true] {
                let norm = PlaneNorm::group(batch, channels, size, groups, 1e-5, silu);
                check_plane_norm(k, "group norm", [batch, channels, size], norm, |a| {
                    group_norm(&a[0], &a[1], &a[2], GroupNormOp { groups, eps: 1e-5, silu })
                });
            }
        }
    });
}

#[test]
fn batch_norms() {
    in_each_type(|k| {
        for (batch, channels, size) in [(3, 6, 143), (1, 4, 9), (4, 1, 300)] {
            let norm = PlaneNorm::batch(batch, channels, size, 1e-5, true);
            check_plane_norm(k, "batch norm", [batch, channels, size], norm, |a| batch_norm(&a[0], &a[1], &a[2], 1e-5, None));
        }
        let (mean, variance) = (floats("mean", &[6]), (floats("variance", &[6]).sqr().unwrap() + 0.1).unwrap());
        let norm = PlaneNorm::batch(2, 6, 35, 1e-5, false);
        let xs = draw(k, "xs", &[2, 6, 35]);
        let (weight, bias) = (floats("w", &[6]), floats("b", &[6]));
        let op = |a: &[Tensor]| {
            let per_channel = |t: &Tensor| t.reshape((1, 6, 1));
            let scale = ((&variance + 1e-5)?.sqrt()?.recip()? * &a[1])?;
            let centred = a[0].broadcast_sub(&per_channel(&mean)?)?;
            centred.broadcast_mul(&per_channel(&scale)?)?.broadcast_add(&per_channel(&a[2])?)
        };
        let results = expected(&[&xs, &weight, &bias], op, |shape| draw(k, "g", shape));
        let (xs, mean, variance) = (up(k, &xs), up_floats(&mean), up_floats(&variance));
        let (weight, bias) = (up_floats(&weight), up_floats(&bias));
        let given = PlaneNormInputs { xs: &xs, mean: &mean, variance: &variance, weight: &weight, bias: &bias };
        same(k, "given statistics", &k.plane_norm(&given, norm).unwrap(), &results[0]);
        let (for_xs, rest) = k.plane_norm_gradient(&given, &up(k, &results[1]), norm).unwrap();
        same(k, "given statistics, inputs", &for_xs, &results[2]);
        same(k, "given statistics, weight and bias", &rest, &Tensor::cat(&results[3..], 0).unwrap());
    });
}

#[test]
fn depthwise_convolutions() {
    // Inputs, weight, stride, padding, dilation.
    type Case = ([usize; 4], [usize; 4], usize, usize, usize);
    let cases: [Case; 6] = [
        ([2, 5, 7, 9], [5, 1, 3, 3], 1, 1, 1),
        ([1, 3, 12, 11], [3, 1, 7, 7], 1, 3, 1),
        ([2, 4, 13, 10], [4, 1, 3, 3], 2, 1, 1),
        ([1, 3, 17, 20], [3, 1, 3, 3], 1, 6, 6),
        ([2, 3, 9, 8], [6, 1, 3, 3], 2, 0, 1),
        ([1, 2, 30, 5], [2, 1, 5, 1], 3, 2, 1),
    ];
    in_each_type(|k| {
        for (xs_shape, weight_shape, stride, padding, dilation) in cases {
            let spec = ConvSpec { stride, padding, dilation, groups: xs_shape[1] };
            let sizes = Sizes::new(&xs_shape, &weight_shape, spec).unwrap();
            let (xs, weight) = (draw(k, "xs", &xs_shape), draw(k, "w", &weight_shape));
            let bias = floats("b", &weight_shape[..1]);
            let op = |a: &[Tensor]| nn::conv2d(&a[0], &a[1], Some(&a[2]), spec);
            let results = expected(&[&xs, &weight, &bias], op, |shape| draw(k, "g", shape));
            let (xs, weight, g) = (up(k, &xs), up(k, &weight), up(k, &results[1]));
            let what = format!("depthwise {weight_shape:?} {spec:?}");
            same(k, &what, &k.depthwise(&xs, &weight, &up_floats(&bias), &sizes).unwrap(), &results[0]);
            same(k, &format!("{what}, inputs"), &k.depthwise_input_gradient(&weight, &g, &sizes).unwrap(), &results[2]);
            same(k, &format!("{what}, weight"), &k.depthwise_weight_gradient(&xs, &g, &sizes).unwrap(), &results[3]);
        }
    });
}

#[test]
fn resizing() {
    let cases =
        [((11, 13), (44, 50)), ((31, 33), (7, 10)), ((5, 7), (10, 21)), ((1, 9), (4, 1)), ((6, 6), (6, 25)), ((8, 3), (1, 1))];
    in_each_type(|k| {
        for (size, out) in cases {
            for mode in 0..3 {
                let xs = draw(k, "xs", &[2, 3, size.0, size.1]);
                let op = |a: &[Tensor]| match mode {
                    0 => nn::resize_nearest(&a[0], out),
                    _ => nn::resize_bilinear(&a[0], out, mode == 2),
                };
                let results = expected(&[&xs], op, |shape| draw(k, "g", shape));
                let sizes = ResizeSizes { planes: 6, size, out, mode };
                let what = format!("resize {size:?} to {out:?}, mode {mode}");
                same(k, &what, &k.resize(&up(k, &xs), sizes).unwrap(), &results[0]);
                let rows = out.0 / 3..out.0;
                let expected = results[0].narrow(2, rows.start, rows.len()).unwrap();
                same(k, &format!("rows of {what}"), &k.resize_rows(&up(k, &xs), sizes, rows).unwrap(), &expected);
                same(k, &format!("{what}, gradient"), &k.resize_gradient(&up(k, &results[1]), sizes).unwrap(), &results[2]);
            }
        }
    });
}

#[test]
fn max_pooling() {
    in_each_type(|k| {
        for (size, kernel, stride, padding) in [((11, 13), 3, 2, 1), ((8, 6), 2, 2, 0), ((9, 7), 3, 1, 1), ((7, 10), 2, 3, 1)] {
            // Whole numbers: there are equal maxima.
            let xs = draw(k, "xs", &[2, 3, size.0, size.1]).round().unwrap();
            let spec = ConvSpec { stride, padding, ..ConvSpec::default() };
            let results = expected(&[&xs], |a| nn::max_pool2d(&a[0], kernel, spec), |shape| draw(k, "g", shape));
            let dims = results[0].dims();
            let sizes = PoolSizes { planes: 6, size, out: (dims[2], dims[3]), kernel, stride, padding };
            let xs = up(k, &xs);
            same(k, "max pool", &k.max_pool(&xs, sizes).unwrap(), &results[0]);
            same(k, "max pool, gradient", &k.max_pool_gradient(&xs, &up(k, &results[1]), sizes).unwrap(), &results[2]);
        }
    });
}

#[test]
fn losses() {
    in_each_type(|k| {
        let (logits, mut rng) = (draw(k, "logits", &[2, 7, 9, 31]), Rng::stream(0, "labels", &[]));
        let pixels = 2 * 9 * 31;
        let labels: Vec<u32> = (0..pixels).map(|_| if rng.below(9) == 0 { 255 } else { rng.below(7) as u32 }).collect();
        let weights: Vec<f32> = (0..pixels).map(|_| rng.uniform()).collect();
        let label_map = Tensor::from_vec(labels.clone(), (2, 9, 31), &Device::Cpu).unwrap();
        let weight_map = Tensor::from_vec(weights.clone(), (2, 9, 31), &Device::Cpu).unwrap();
        let op = |a: &[Tensor]| nn::cross_entropy(&a[0], &label_map, Some(&weight_map));
        let results = expected(&[&logits], op, |shape| floats("g", shape));
        let numbers: Vec<f32> = labels.iter().map(|x| *x as f32).collect();
        let (logits, labels) = (up(k, &logits), Buffer::from_values(&numbers, Kind::U32));
        let weights = Buffer::from_values(&weights, Kind::F32);
        let given = CrossEntropyInputs { logits: &logits, labels: &labels, weights: &weights, images: 2, classes: 7, size: 279 };
        let (loss, log_sums) = k.cross_entropy(&given).unwrap();
        same(k, "cross entropy", &loss, &results[0]);
        let gradient = k.cross_entropy_gradient(&given, &log_sums, &up_floats(&results[1])).unwrap();
        same(k, "cross entropy, gradient", &gradient, &results[2]);

        let (xs, ys) = (draw(k, "xs", &[7, 300]), draw(k, "ys", &[7, 300]));
        let results = expected(&[&xs, &ys], |a| nn::mse(&a[0], &a[1]), |shape| floats("g", shape));
        let (xs, ys, g) = (up(k, &xs), up(k, &ys), up_floats(&results[1]));
        same(k, "mse", &k.squared_error(&xs, &ys, 2100).unwrap(), &results[0]);
        same(k, "mse, gradient", &k.squared_error_gradient(&xs, &ys, &g, 2100).unwrap(), &results[2]);
        same(k, "mse, second gradient", &k.squared_error_gradient(&ys, &xs, &g, 2100).unwrap(), &results[3]);
    });
}

#[test]
fn attention() {
    // Heads, queries, keys, dimensions of a head; the widths go through all kernels.
    let cases = [
        (3, 70, 45, 8, false),
        (2, 1, 130, 40, false),
        (2, 130, 130, 64, true),
        (1, 65, 77, 80, false),
        (1, 33, 66, 160, false),
        (1, 20, 70, 512, false),
        (1, 64, 64, 3, true),
        (1, 5, 90, 4, true),
    ];
    in_each_type(|k| {
        for (heads, queries, keys, dim, causal) in cases {
            let scale = 1.0 / (dim as f32).sqrt();
            let at = |name: &str, len: usize| draw(k, name, &[1, heads, len, dim]);
            let (q, ks, v) = (at("q", queries), at("k", keys), at("v", keys));
            let op = |a: &[Tensor]| {
                let [q, k, v] = [nn::join_heads(&a[0])?, nn::join_heads(&a[1])?, nn::join_heads(&a[2])?];
                nn::split_heads(&nn::attention(&q, &k, &v, heads, scale, causal)?, heads)
            };
            let results = expected(&[&q, &ks, &v], op, |shape| draw(k, "g", shape));
            let (q, ks, v, g) = (up(k, &q), up(k, &ks), up(k, &v), up(k, &results[1]));
            let sizes = AttentionSizes { heads, queries, keys, dim, scale, causal, sharing: heads };
            let (out, log_sums) = k.attention([&q, &ks, &v], None, sizes).unwrap();
            let what = format!("attention {sizes:?}");
            same(k, &what, &out, &results[0]);
            let means = k.attention_means(&out, &g, sizes).unwrap();
            let given = AttentionGiven { bias: None, gradient: &g, log_sums: &log_sums, means: &means };
            for wanted in 0..3 {
                let gradient = k.attention_gradient([&q, &ks, &v], &given, sizes, wanted).unwrap();
                same(k, &format!("{what}, gradient {wanted}"), &gradient, &results[2 + wanted]);
            }
        }
    });
}

#[test]
fn optimiser_steps() {
    let Some(machine) = Emulator::new() else { return };
    let k = &Kernels { machine: &machine, values: Kind::F32 };
    let gradients: Vec<Tensor> = [700, 3].iter().map(|len| floats("g", &[*len])).collect();
    let uploaded = || gradients.iter().map(|g| (up(k, g), g.elem_count())).collect::<Vec<_>>();
    let norm = gradients.iter().flat_map(numbers).map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
    let clipped = Tensor::new(&[norm, 2.0 / (norm + 1e-6)], &Device::Cpu).unwrap();
    same(k, "clip", &k.clip(&uploaded(), 2.0).unwrap(), &clipped);
    let free = k.clip(&uploaded(), 0.0).unwrap();
    same(k, "no clip", &free, &Tensor::new(&[norm, 1.0], &Device::Cpu).unwrap());

    let factors = AdamWFactors {
        keep: 0.999,
        beta1: 0.9,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        root_correction2: 0.2,
        epsilon: 1e-8,
        step_size: 0.05,
    };
    let (p, m, v) = (floats("p", &[700]), floats("m", &[700]), floats("v", &[700]).sqr().unwrap());
    let norm = k.clip(&uploaded(), 2.0).unwrap();
    let g = (&gradients[0] * f64::from(norm.values()[1])).unwrap();
    let (parameter, moments) = (up(k, &p), up(k, &Tensor::cat(&[&m, &v], 0).unwrap()));
    k.adamw(&parameter, &moments, &up(k, &gradients[0]), &norm, 700, &factors).unwrap();
    let m = ((m * 0.9).unwrap() + (&g * 0.1).unwrap()).unwrap();
    let v = ((v * 0.999).unwrap() + (g.sqr().unwrap() * 0.001).unwrap()).unwrap();
    let down = (m.clone() / ((v.sqrt().unwrap() / 0.2).unwrap() + 1e-8).unwrap()).unwrap();
    same(k, "adamw", &parameter, &((&p * 0.999).unwrap() - (down * 0.05).unwrap()).unwrap());
    same(k, "moments", &moments, &Tensor::cat(&[&m, &v], 0).unwrap());

    let average = up(k, &p);
    k.running_average(&average, &up(k, &gradients[0]), 700, 0.75).unwrap();
    let mixed = ((&p * 0.75).unwrap() + (&gradients[0] * 0.25).unwrap()).unwrap();
    same(k, "running average", &average, &mixed);
}

#[test]
fn wrong_launches_are_found() {
    let Some(machine) = Emulator::new() else { return };
    let k = Kernels { machine: &machine, values: Kind::F32 };
    let buffer = Buffer::from_values(&[1.0], Kind::F32);
    assert!(k.threads(Source::Optimizer, "no_such_kernel", 1, args![&buffer]).is_err());
    assert!(k.threads(Source::Optimizer, "running_average", 1, args![&buffer, &buffer, 1.0, 0.5, 0.5]).is_err());
    assert!(k.threads(Source::Optimizer, "running_average", 1, args![&buffer, &buffer, 1 << 31, 0.5, 0.5]).is_err());
}

#[test]
fn faulty_kernels_are_found() {
    const NO_BARRIER: &str = r#"extern "C" __global__ void shifted(const T *xs, T *out) {
        __shared__ T row[256];
        row[threadIdx.x] = xs[threadIdx.x];
        out[threadIdx.x] = row[(threadIdx.x + 1) % 256];
    }"#;
    const BARRIER: &str = r#"extern "C" __global__ void shifted(const T *xs, T *out) {
        __shared__ T row[256];
        row[threadIdx.x] = xs[threadIdx.x];
        __syncthreads();
        out[threadIdx.x] = row[(threadIdx.x + 1) % 256];
    }"#;
    const TOO_FAR: &str =
        r#"extern "C" __global__ void shifted(const T *xs, T *out) { out[threadIdx.x + 1] = xs[threadIdx.x]; }"#;
    if Emulator::new().is_none() {
        return;
    }
    let values: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let run = |text: &'static str| {
        std::panic::catch_unwind(|| {
            let machine = Emulator::new().unwrap();
            let k = Kernels { machine: &machine, values: Kind::F32 };
            let (xs, out) = (Buffer::from_values(&values, Kind::F32), Buffer::from_values(&values, Kind::F32));
            k.threads(Source::Text(text), "shifted", 256, args![&xs, &out]).unwrap();
            out.values()
        })
    };
    assert_eq!(run(BARRIER).unwrap()[..3], [1.0, 2.0, 3.0]);
    assert!(run(NO_BARRIER).is_err());
    assert!(run(TOO_FAR).is_err());
}
