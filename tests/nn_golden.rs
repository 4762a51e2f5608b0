//! Every operation of `datum::nn` against PyTorch: outputs and the gradients of all arguments.
//! Values come from `tests/golden/nn.py`.

use candle_core::{DType, Device, Tensor, Var};
use datum::nn::{self, ConvSpec, Init, Pass};
use std::collections::HashMap;

type Values = HashMap<String, Tensor>;
type Arguments<'a> = &'a [Var];

/// Largest difference allowed, relative to the largest value of the reference (floor 1).
const TOLERANCE: f32 = 3e-6;

/// Largest difference allowed in activations, relative to each value (floor 1).
const ACTIVATION_TOLERANCE: f32 = 1e-6;

fn golden() -> Values {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/nn.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, ours: &Tensor, reference: &Tensor, tolerance: f32) {
    assert_eq!(ours.dims(), reference.dims(), "{what}");
    let (ours, reference) = (values(ours), values(reference));
    let scale = reference.iter().fold(1f32, |a, x| a.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(&reference).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what}[{i}]: {a}, PyTorch {b}");
    }
}

fn assert_each_close(what: &str, ours: &Tensor, reference: &Tensor) {
    for (i, (a, b)) in values(ours).iter().zip(&values(reference)).enumerate() {
        assert!((a - b).abs() <= ACTIVATION_TOLERANCE * b.abs().max(1.0), "{what}[{i}]: {a}, PyTorch {b}");
    }
}

fn check(golden: &Values, name: &str, op: impl Fn(Arguments) -> Tensor) {
    check_with(golden, name, op, |what, ours, reference| assert_close(what, ours, reference, TOLERANCE));
}

fn check_with(golden: &Values, name: &str, op: impl Fn(Arguments) -> Tensor, compare: impl Fn(&str, &Tensor, &Tensor)) {
    let arguments: Vec<Var> =
        (0..).map_while(|i| golden.get(&format!("{name}.in{i}"))).map(|t| Var::from_tensor(t).unwrap()).collect();
    assert!(!arguments.is_empty(), "no case {name}");
    let out = nn::recording(|| op(&arguments));
    compare(&format!("{name}.out"), &out, &golden[&format!("{name}.out")]);
    let gradients = nn::backward(&(out * &golden[&format!("{name}.up")]).unwrap().sum_all().unwrap()).unwrap();
    for (i, argument) in arguments.iter().enumerate() {
        let gradient = gradients.get(argument).unwrap_or_else(|| panic!("{name}: argument {i} has no gradient"));
        compare(&format!("{name}.d{i}"), gradient, &golden[&format!("{name}.d{i}")]);
    }
}

#[test]
fn convolutions() {
    let golden = golden();
    let spec = |stride, padding, dilation, groups| ConvSpec { stride, padding, dilation, groups };
    let cases = [
        ("conv.plain", spec(1, 0, 1, 1)),
        ("conv.padded", spec(1, 1, 1, 1)),
        ("conv.nobias", spec(1, 1, 1, 1)),
        ("conv.stride2", spec(2, 1, 1, 1)),
        ("conv.stride4", spec(4, 3, 1, 1)),
        ("conv.patch", spec(4, 0, 1, 1)),
        ("conv.dilated2", spec(1, 2, 2, 1)),
        ("conv.dilated6", spec(1, 6, 6, 1)),
        ("conv.dilated2stride2", spec(2, 2, 2, 1)),
        ("conv.groups", spec(1, 1, 1, 2)),
        ("conv.groups_stride", spec(2, 1, 1, 3)),
        ("conv.point", spec(1, 0, 1, 1)),
        ("conv.point_groups", spec(1, 0, 1, 2)),
        ("conv.point_stride", spec(2, 0, 1, 1)),
        ("conv.oblong", spec(1, 1, 1, 1)),
        ("conv.overpadded", spec(3, 4, 1, 1)),
        ("dw.3", spec(1, 1, 1, 3)),
        ("dw.7", spec(1, 3, 1, 2)),
        ("dw.5nobias", spec(1, 2, 1, 3)),
        ("dw.wide", spec(1, 1, 1, 2)),
        ("dw.stride2", spec(2, 1, 1, 3)),
        ("dw.stride2k5", spec(2, 2, 1, 3)),
        ("dw.valid_stride2", spec(2, 0, 1, 3)),
        ("dw.stride3", spec(3, 1, 1, 3)),
        ("dw.dilated2", spec(1, 2, 2, 3)),
        ("dw.dilated6", spec(1, 6, 6, 3)),
        ("dw.dilated18", spec(1, 18, 18, 2)),
        ("dw.dilated12wide", spec(1, 12, 12, 2)),
        ("dw.dilated3stride2", spec(2, 3, 3, 3)),
        ("dw.multiplier", spec(2, 1, 1, 3)),
    ];
    for (name, spec) in cases {
        check(&golden, name, |a| nn::conv2d(&a[0], &a[1], a.get(2).map(Var::as_tensor), spec).unwrap());
    }
}

#[test]
fn products() {
    let golden = golden();
    for name in ["linear.3d", "linear.nobias"] {
        check(&golden, name, |a| nn::linear(&a[0], &a[1], a.get(2).map(Var::as_tensor)).unwrap());
    }
    for (name, causal) in [("attention.cross", false), ("attention.causal", true), ("attention.one_head", false)] {
        check(&golden, name, |a| {
            let (heads, [q, k, v]) = (a[0].dim(1).unwrap(), [0, 1, 2].map(|i| nn::join_heads(&a[i]).unwrap()));
            nn::split_heads(&nn::attention(&q, &k, &v, heads, 0.3, causal).unwrap(), heads).unwrap()
        });
    }
}

/// A builder over the weight and bias of a golden case, so that layers use exactly these variables.
fn affine(arguments: Arguments) -> (nn::Builder, nn::ParamStore) {
    let builder = nn::Builder::random(0);
    for (name, value) in [("weight", &arguments[1]), ("bias", &arguments[2])] {
        builder.get(value.dims(), name, Init::Zeros).unwrap();
    }
    let store = builder.finish().unwrap();
    store.get("weight").unwrap().set(&arguments[1]).unwrap();
    store.get("bias").unwrap().set(&arguments[2]).unwrap();
    (nn::Builder::from_store(&store), store)
}

/// Checks a layer with weight and bias: its own variables stand for arguments 1 and 2.
fn check_layer(golden: &Values, name: &str, tolerance: f32, forward: impl Fn(&nn::Builder, &Tensor) -> Tensor) {
    let arguments: Vec<Var> = (0..3).map(|i| Var::from_tensor(&golden[&format!("{name}.in{i}")]).unwrap()).collect();
    let (builder, store) = affine(&arguments);
    let out = nn::recording(|| forward(&builder, &arguments[0]));
    assert_close(&format!("{name}.out"), &out, &golden[&format!("{name}.out")], tolerance);
    let gradients = nn::backward(&(out * &golden[&format!("{name}.up")]).unwrap().sum_all().unwrap()).unwrap();
    let vars = [&arguments[0], store.get("weight").unwrap(), store.get("bias").unwrap()];
    for (i, var) in vars.into_iter().enumerate() {
        let reference = &golden[&format!("{name}.d{i}")];
        assert_close(&format!("{name}.d{i}"), gradients.get(var).unwrap(), reference, tolerance);
    }
}

#[test]
fn norms() {
    let golden = golden();
    check_layer(&golden, "norm.layer", TOLERANCE, |b, x| nn::LayerNorm::new(37, 1e-6, b).unwrap().forward(x).unwrap());
    // The mean is 300 times the spread.
    check_layer(&golden, "norm.layer_far", 3e-5, |b, x| nn::LayerNorm::new(37, 1e-5, b).unwrap().forward(x).unwrap());
    check_layer(&golden, "norm.group", TOLERANCE, |b, x| nn::GroupNorm::new(3, 6, 1e-5, b).unwrap().forward(x).unwrap());
    check_layer(&golden, "norm.group_silu", TOLERANCE, |b, x| {
        nn::GroupNorm::new(3, 6, 1e-6, b).unwrap().forward_silu(x).unwrap()
    });
}

#[test]
fn batch_norm() {
    let golden = golden();
    for (name, pass) in [("norm.batch", Pass::statistics_only()), ("norm.batch_eval", Pass::eval())] {
        let arguments: Vec<Var> = (0..3).map(|i| Var::from_tensor(&golden[&format!("{name}.in{i}")]).unwrap()).collect();
        let builder = nn::Builder::random(0);
        let layer = nn::BatchNorm2d::new(4, &builder).unwrap();
        let store = builder.finish().unwrap();
        let set = |to: &str, from: &Tensor| store.get(to).unwrap().set(from).unwrap();
        set("weight", &arguments[1]);
        set("bias", &arguments[2]);
        if name == "norm.batch_eval" {
            set("running_mean", &golden["norm.batch.mean"]);
            set("running_var", &golden["norm.batch.var"]);
        }
        let out = nn::recording(|| layer.forward(&arguments[0], &pass)).unwrap();
        // The mean is 100 times the spread.
        assert_close(&format!("{name}.out"), &out, &golden[&format!("{name}.out")], 2e-5);
        let gradients = nn::backward(&(out * &golden[&format!("{name}.up")]).unwrap().sum_all().unwrap()).unwrap();
        for (i, var) in [&arguments[0], store.get("weight").unwrap(), store.get("bias").unwrap()].into_iter().enumerate() {
            assert_close(&format!("{name}.d{i}"), gradients.get(var).unwrap(), &golden[&format!("{name}.d{i}")], 2e-5);
        }
        assert_close("running mean", store.get("running_mean").unwrap(), &golden["norm.batch.mean"], 1e-6);
        assert_close("running variance", store.get("running_var").unwrap(), &golden["norm.batch.var"], 1e-6);
    }
}

#[test]
fn activations() {
    let golden = golden();
    let each = |name: &str, op: fn(&Tensor) -> candle_core::Result<Tensor>| {
        check_with(&golden, name, |a| op(&a[0]).unwrap(), assert_each_close);
    };
    each("act.gelu", nn::gelu);
    each("act.quick_gelu", nn::quick_gelu);
    each("act.silu", nn::silu);
    each("act.relu", nn::relu);
    each("act.relu6", nn::relu6);
    each("act.geglu", nn::geglu);
    each("act.softmax", nn::softmax);
}

#[test]
fn resizing() {
    let golden = golden();
    let sizes =
        [("up", (13, 16)), ("down", (5, 4)), ("mixed", (3, 9)), ("one", (1, 1)), ("from_one", (3, 4)), ("same_rows", (4, 9))];
    for (name, size) in sizes {
        for (align, suffix) in [(false, 0), (true, 1)] {
            check(&golden, &format!("bilinear.{name}.{suffix}"), |a| nn::resize_bilinear(&a[0], size, align).unwrap());
        }
        check(&golden, &format!("nearest.{name}"), |a| nn::resize_nearest(&a[0], size).unwrap());
    }
}

#[test]
fn max_pooling() {
    let golden = golden();
    let spec = |stride, padding| ConvSpec { stride, padding, ..ConvSpec::default() };
    for (name, kernel, spec) in
        [("pool.3s2p1", 3, spec(2, 1)), ("pool.2s2", 2, spec(2, 0)), ("pool.3s1p1", 3, spec(1, 1)), ("pool.ties", 3, spec(2, 1))]
    {
        check(&golden, name, |a| nn::max_pool2d(&a[0], kernel, spec).unwrap());
    }
}

#[test]
fn losses() {
    let golden = golden();
    let labels = golden["loss.labels"].to_dtype(DType::U32).unwrap();
    check(&golden, "loss.ce", |a| nn::cross_entropy(&a[0], &labels, None).unwrap());
    check(&golden, "loss.ce_weighted", |a| nn::cross_entropy(&a[0], &labels, Some(&golden["loss.weights"])).unwrap());
    check(&golden, "loss.mse", |a| nn::mse(&a[0], &a[1]).unwrap());
}
