//! Every operation of `datum::nn` against central finite differences along a random direction, on shapes that cross the
//! operations' internal blocks; frozen arguments; independence of thread count and batch size.

use candle_core::{Device, Result, Tensor, Var};
use datum::base::Rng;
use datum::nn::{self, ConvSpec, Init, Pass};

type Arguments<'a> = &'a [Tensor];
type Op = Box<dyn Fn(Arguments) -> Result<Tensor> + Sync>;

/// An operation with random arguments of given shapes.
struct Case {
    name: &'static str,
    shapes: Vec<Vec<usize>>,
    op: Op,
}

fn case(name: &'static str, shapes: &[&[usize]], op: impl Fn(Arguments) -> Result<Tensor> + Sync + 'static) -> Case {
    Case { name, shapes: shapes.iter().map(|s| s.to_vec()).collect(), op: Box::new(op) }
}

impl Case {
    fn arguments(&self) -> Vec<Tensor> {
        let mut rng = Rng::stream(1, self.name, &[]);
        self.shapes.iter().map(|shape| rng.normal_tensor(shape, &Device::Cpu).unwrap()).collect()
    }

    /// Fixed random weights that turn the output into a number; their gradient is what comes back.
    fn weights(&self, out: &Tensor) -> Tensor {
        Rng::stream(2, self.name, &[]).normal_tensor(out.dims(), &Device::Cpu).unwrap()
    }

    /// The output, and the gradient of every argument.
    fn run(&self) -> Vec<Tensor> {
        let vars: Vec<Var> = self.arguments().iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let out = nn::recording(|| (self.op)(&tensors)).unwrap();
        let gradients = nn::backward(&(&out * self.weights(&out)).unwrap().sum_all().unwrap()).unwrap();
        let of = |var: &Var| gradients.get(var).unwrap_or_else(|| panic!("{}: no gradient", self.name)).clone();
        std::iter::once(out.detach()).chain(vars.iter().map(of)).collect()
    }
}

fn conv(name: &'static str, shapes: &[&[usize]], stride: usize, padding: usize, dilation: usize, groups: usize) -> Case {
    let spec = ConvSpec { stride, padding, dilation, groups };
    case(name, shapes, move |a| nn::conv2d(&a[0], &a[1], a.get(2), spec))
}

/// A layer over given weight and bias (constants), reached through a parameter store.
fn with_affine(a: Arguments, build: impl Fn(&nn::Builder) -> Result<Tensor>) -> Result<Tensor> {
    let builder = nn::Builder::random(0);
    for (name, value) in [("weight", &a[1]), ("bias", &a[2])] {
        builder.get(value.dims(), name, Init::Zeros).unwrap();
    }
    let store = builder.finish().unwrap();
    store.get("weight").unwrap().set(&a[1].detach())?;
    store.get("bias").unwrap().set(&a[2].detach())?;
    build(&nn::Builder::from_store(&store).frozen())
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        conv("conv 3x3", &[&[2, 5, 19, 23], &[7, 5, 3, 3], &[7]], 1, 1, 1, 1),
        conv("conv 3x3 tiled", &[&[1, 130, 61, 47], &[3, 130, 3, 3], &[3]], 1, 1, 1, 1),
        conv("conv 3x3 stride 2 tiled", &[&[1, 260, 61, 47], &[3, 260, 3, 3], &[3]], 2, 1, 1, 1),
        conv("conv 3x3 stride 2, odd", &[&[2, 5, 18, 23], &[7, 5, 3, 3], &[7]], 2, 1, 1, 1),
        conv("conv 3x3 dilation 12", &[&[1, 5, 17, 30], &[7, 5, 3, 3]], 1, 12, 12, 1),
        conv("conv groups", &[&[2, 6, 11, 9], &[4, 3, 3, 3], &[4]], 1, 1, 1, 2),
        conv("conv 1x1", &[&[2, 33, 19, 23], &[17, 33, 1, 1], &[17]], 1, 0, 1, 1),
        // Four ways to compute it: see `nn::conv`.
        conv("conv 1x1, bias of each image", &[&[2, 33, 19, 23], &[17, 33, 1, 1], &[2, 17]], 1, 0, 1, 1),
        conv("conv 3x3, bias of each image", &[&[2, 64, 64, 66], &[67, 64, 3, 3], &[2, 67]], 1, 1, 1, 1),
        conv("conv 5x5, bias of each image", &[&[2, 16, 31, 33], &[9, 16, 5, 5], &[2, 9]], 1, 2, 1, 1),
        conv("depthwise, bias of each image", &[&[2, 5, 17, 21], &[5, 1, 3, 3], &[2, 5]], 1, 1, 1, 5),
        conv("depthwise 3x3", &[&[2, 5, 37, 41], &[5, 1, 3, 3], &[5]], 1, 1, 1, 5),
        conv("depthwise 7x7", &[&[2, 5, 16, 16], &[5, 1, 7, 7], &[5]], 1, 3, 1, 5),
        conv("depthwise stride 2", &[&[2, 5, 37, 40], &[5, 1, 3, 3], &[5]], 2, 1, 1, 5),
        conv("depthwise dilation 18", &[&[1, 5, 37, 70], &[5, 1, 3, 3]], 1, 18, 18, 5),
        case("linear", &[&[3, 41, 37], &[29, 37], &[29]], |a| nn::linear(&a[0], &a[1], Some(&a[2]))),
        case("attention", &[&[2, 70, 24], &[2, 45, 24], &[2, 45, 24]], |a| nn::attention(&a[0], &a[1], &a[2], 3, 0.35, false)),
        case("attention, one head", &[&[1, 530, 4], &[1, 1100, 4], &[1, 1100, 4]], |a| {
            nn::attention(&a[0], &a[1], &a[2], 1, 0.5, false)
        }),
        case("attention, causal", &[&[1, 530, 8], &[1, 530, 8], &[1, 530, 8]], |a| {
            nn::attention(&a[0], &a[1], &a[2], 2, 0.5, true)
        }),
        case("softmax", &[&[7, 83]], |a| nn::softmax(&a[0])),
        case("gelu", &[&[7, 83]], |a| nn::gelu(&a[0])),
        case("quick gelu", &[&[7, 83]], |a| nn::quick_gelu(&a[0])),
        case("silu", &[&[7, 83]], |a| nn::silu(&a[0])),
        case("geglu", &[&[7, 84]], |a| nn::geglu(&a[0])),
        case("bilinear up", &[&[2, 3, 11, 13]], |a| nn::resize_bilinear(&a[0], (44, 50), false)),
        case("bilinear down", &[&[2, 3, 31, 33]], |a| nn::resize_bilinear(&a[0], (7, 10), true)),
        case("nearest", &[&[2, 3, 5, 7]], |a| nn::resize_nearest(&a[0], (10, 21))),
        case("nearest, shared input", &[&[2, 3, 5, 7]], |a| {
            nn::resize_nearest(&a[0], (10, 14))? + nn::resize_nearest(&a[0].affine(2.0, 0.0)?, (10, 14))?
        }),
        case("mse", &[&[7, 3000], &[7, 3000]], |a| nn::mse(&a[0], &a[1])),
    ];
    cases.extend(norm_cases());
    cases.push(case("cross entropy", &[&[2, 7, 37, 41]], |a| {
        let labels: Vec<u32> = (0..2 * 37 * 41).map(|i| if i % 9 == 8 { 255 } else { i % 7 }).collect();
        let weights: Vec<f32> = (0..2 * 37 * 41).map(|i| (i % 4) as f32).collect();
        let labels = Tensor::from_vec(labels, (2, 37, 41), &Device::Cpu)?;
        // Times 1000: the mean over all pixels is small against rounding.
        nn::cross_entropy(&a[0], &labels, Some(&Tensor::from_vec(weights, (2, 37, 41), &Device::Cpu)?))? * 1000.0
    }));
    cases
}

/// Norms for their inputs only: `nn_golden` has their weights and biases.
fn norm_cases() -> Vec<Case> {
    let norm = |name, shape: &[usize], width: usize, build: fn(&nn::Builder, &Tensor) -> Result<Tensor>| {
        let mut rng = Rng::stream(3, name, &[]);
        let affine: Vec<Tensor> = (0..2).map(|_| rng.normal_tensor(&[width], &Device::Cpu).unwrap()).collect();
        case(name, &[shape], move |a| {
            with_affine(&[a[0].clone(), affine[0].clone(), affine[1].clone()], |builder| build(builder, &a[0]))
        })
    };
    vec![
        norm("layer norm", &[70, 67], 67, |b, x| nn::LayerNorm::new(67, 1e-5, b).unwrap().forward(x)),
        norm("group norm", &[2, 6, 11, 13], 6, |b, x| nn::GroupNorm::new(3, 6, 1e-5, b).unwrap().forward(x)),
        norm("group norm and silu", &[2, 6, 11, 13], 6, |b, x| nn::GroupNorm::new(3, 6, 1e-5, b).unwrap().forward_silu(x)),
        norm("batch norm", &[3, 6, 11, 13], 6, |b, x| nn::BatchNorm2d::new(6, b).unwrap().forward(x, &Pass::statistics_only())),
        norm("batch norm, given statistics", &[2, 6, 11, 13], 6, |b, x| {
            nn::BatchNorm2d::new(6, b).unwrap().forward(x, &Pass::eval())
        }),
    ]
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    values(a).iter().zip(values(b)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// f32 differences with step 1e-2 along a unit-variance direction: good to a few parts in a thousand of the slope's size
/// (the norm of the gradient, which is its standard deviation over directions).
#[test]
fn gradients_agree_with_finite_differences() {
    const STEP: f64 = 1e-2;
    for case in cases() {
        let arguments = case.arguments();
        let results = case.run();
        for (i, gradient) in results[1..].iter().enumerate() {
            let direction = Rng::stream(4, case.name, &[i as u64]).normal_tensor(&case.shapes[i], &Device::Cpu).unwrap();
            let at = |step: f64| {
                let mut moved = arguments.clone();
                moved[i] = (&moved[i] + (&direction * step).unwrap()).unwrap();
                let out = (case.op)(&moved).unwrap();
                inner(&out, &case.weights(&out))
            };
            // Fourth order: the functions are curved on the scale of a usable f32 step.
            let slope = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
            let expected = inner(gradient, &direction);
            let size = inner(gradient, gradient).sqrt();
            assert!(
                (slope - expected).abs() <= 3e-3 * size,
                "{}, argument {i}: gradient {expected}, differences {slope}, size {size}",
                case.name
            );
        }
    }
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cases().iter().map(|case| (case.name, case.run())).collect::<Vec<_>>())
    };
    let one = run(1);
    for threads in [2, 3] {
        for ((name, a), (_, b)) in one.iter().zip(run(threads)) {
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                let same = values(a).iter().zip(values(b)).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: result {i} with {threads} threads");
            }
        }
    }
}

#[test]
fn a_batch_equals_its_items() {
    let is_attention = |case: &Case| case.name.starts_with("attention");
    let has_images = |case: &Case| case.shapes[0].len() == 4 && case.name != "cross entropy" || is_attention(case);
    for case in cases().iter().filter(|case| case.shapes[0][0] == 2 && has_images(case)) {
        let arguments = case.arguments();
        let whole = (case.op)(&arguments).unwrap();
        for item in 0..2 {
            let is_batched = |i: usize| i == 0 || is_attention(case) || i == 2 && case.name.ends_with("of each image");
            let mut single = arguments.clone();
            for (_, argument) in single.iter_mut().enumerate().filter(|(i, _)| is_batched(*i)) {
                *argument = argument.narrow(0, item, 1).unwrap().contiguous().unwrap();
            }
            let (a, b) = (values(&whole.get(item).unwrap()), values(&(case.op)(&single).unwrap()));
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{} item {item}: {a} {b}", case.name);
            }
        }
    }
}

#[test]
fn frozen_arguments_get_no_gradient() {
    let three_arguments = |case: &Case| case.shapes.len() >= 2 && case.name != "mse";
    for case in cases().iter().filter(|case| three_arguments(case)) {
        let full = case.run();
        let count = case.shapes.len();
        for mask in 1..(1 << count) - 1 {
            let arguments = case.arguments();
            let vars: Vec<Option<Var>> =
                (0..count).map(|i| (mask >> i & 1 == 1).then(|| Var::from_tensor(&arguments[i]).unwrap())).collect();
            let tensors: Vec<Tensor> = vars
                .iter()
                .zip(&arguments)
                .map(|(var, frozen)| var.as_ref().map_or_else(|| frozen.clone(), |var| var.as_tensor().clone()))
                .collect();
            let out = nn::recording(|| (case.op)(&tensors)).unwrap();
            let gradients = nn::backward(&(&out * case.weights(&out)).unwrap().sum_all().unwrap()).unwrap();
            for (i, tensor) in tensors.iter().enumerate() {
                match gradients.get(tensor) {
                    Some(gradient) => {
                        assert!(mask >> i & 1 == 1, "{}: argument {i} is frozen", case.name);
                        assert_eq!(values(gradient), values(&full[i + 1]), "{}: argument {i}, mask {mask:b}", case.name);
                    }
                    None => assert!(mask >> i & 1 == 0, "{}: argument {i} lost its gradient", case.name),
                }
            }
        }
    }
}

#[test]
fn a_frozen_batch_norm_records_no_graph() {
    let builder = nn::Builder::random(0);
    let layer = nn::BatchNorm2d::new(3, &builder.frozen()).unwrap();
    let xs = Rng::stream(0, "xs", &[]).normal_tensor(&[2, 3, 4, 5], &Device::Cpu).unwrap();
    assert!(!layer.forward(&xs, &Pass::statistics_only()).unwrap().track_op());
}

/// Twice the pixels of a chunk, so that the cut runs over several.
#[test]
fn batch_norm_and_activation_in_one_are_the_two_in_turn() {
    type Activated = fn(&nn::BatchNorm2d, &Tensor, &Pass) -> Result<Tensor>;
    let both: [(Activated, Activated); 2] = [
        (|layer, xs, pass| layer.forward_relu(xs, pass), |layer, xs, pass| nn::relu(&layer.forward(xs, pass)?)),
        (|layer, xs, pass| layer.forward_relu6(xs, pass), |layer, xs, pass| nn::relu6(&layer.forward(xs, pass)?)),
    ];
    for (one, two) in both {
        for pass in [Pass::statistics_only(), Pass::eval()] {
            let run = |op: Activated| {
                let builder = nn::Builder::random(0);
                let layer = nn::BatchNorm2d::new(3, &builder).unwrap();
                let store = builder.finish().unwrap();
                let mut rng = Rng::stream(5, "activated", &[]);
                let mut draw = |shape: &[usize]| rng.normal_tensor(shape, &Device::Cpu).unwrap();
                store.get("weight").unwrap().set(&(draw(&[3]) * 4.0).unwrap()).unwrap();
                store.get("bias").unwrap().set(&draw(&[3])).unwrap();
                let (xs, weights) = (Var::from_tensor(&draw(&[2, 3, 61, 47])).unwrap(), draw(&[2, 3, 61, 47]));
                let out = nn::recording(|| op(&layer, &xs, &pass)).unwrap();
                let gradients = nn::backward(&(&out * &weights).unwrap().sum_all().unwrap()).unwrap();
                let vars = [&xs, store.get("weight").unwrap(), store.get("bias").unwrap()];
                let found = vars.map(|var| values(gradients.get(var).unwrap()));
                (values(&out), found)
            };
            assert!(run(one) == run(two));
        }
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let spec = ConvSpec::default();
    assert!(nn::conv2d(&zeros(&[1, 3, 5, 5]), &zeros(&[4, 2, 3, 3]), None, spec).is_err());
    assert!(nn::conv2d(&zeros(&[1, 3, 2, 5]), &zeros(&[4, 3, 3, 3]), None, spec).is_err());
    assert!(nn::conv2d(&zeros(&[1, 3, 5, 5]), &zeros(&[4, 3, 3, 3]), Some(&zeros(&[3])), spec).is_err());
    assert!(nn::linear(&zeros(&[2, 3]), &zeros(&[4, 2]), None).is_err());
    assert!(nn::attention(&zeros(&[1, 3, 8]), &zeros(&[1, 5, 8]), &zeros(&[1, 6, 8]), 2, 1.0, false).is_err());
    assert!(nn::attention(&zeros(&[1, 3, 8]), &zeros(&[1, 5, 8]), &zeros(&[1, 5, 8]), 3, 1.0, false).is_err());
    assert!(nn::resize_bilinear(&zeros(&[1, 2, 3, 4]), (0, 4), false).is_err());
    assert!(nn::max_pool2d(&zeros(&[1, 2, 3, 4]), 3, ConvSpec { padding: 2, ..spec }).is_err());
    assert!(nn::mse(&zeros(&[2]), &zeros(&[3])).is_err());
    assert!(nn::geglu(&zeros(&[2, 3])).is_err());
    assert!(nn::conv2d(&zeros(&[2, 3, 5, 5]), &zeros(&[4, 3, 3, 3]), Some(&zeros(&[3, 4])), spec).is_err());
}

/// One wide head over many tokens, as in the autoencoder: several blocks, each longer than those of narrow heads.
#[test]
fn wide_heads_equal_the_plain_formula() {
    let (tokens, dim, scale) = (150, 512, 0.044);
    let draw = |name: &str| {
        let values = Rng::stream(0, name, &[]).normal_tensor(&[1, tokens, dim], &Device::Cpu).unwrap();
        Var::from_tensor(&values).unwrap()
    };
    let (q, k, v, weights) = (draw("q"), draw("k"), draw("v"), draw("weights"));
    let run = |out: Tensor| {
        let gradients = nn::backward(&(&out * weights.as_detached_tensor()).unwrap().sum_all().unwrap()).unwrap();
        let mut all = vec![out];
        all.extend([&q, &k, &v].map(|var| gradients.get(var).unwrap().clone()));
        all
    };
    let scores = (q.matmul(&k.t().unwrap()).unwrap() * scale).unwrap();
    let plain = run(nn::softmax(&scores).unwrap().matmul(&v).unwrap());
    let tiled = run(nn::attention(&q, &k, &v, 1, scale as f32, false).unwrap());
    for (ours, expected) in tiled.iter().zip(&plain) {
        let largest = values(expected).iter().fold(0f32, |a, b| a.max(b.abs()));
        let error = values(&(ours - expected).unwrap()).iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!(error <= 1e-5 * largest, "{error} of {largest}");
    }
}

/// Small weights: a thread an image with partial weight gradients. Large ones: all threads on one image. Same numbers.
#[test]
fn convolutions_of_large_weights_equal_their_items() {
    let spec = ConvSpec { padding: 1, ..ConvSpec::default() };
    let draw = |name: &str, shape: &[usize]| {
        Var::from_tensor(&Rng::stream(0, name, &[]).normal_tensor(shape, &Device::Cpu).unwrap()).unwrap()
    };
    // Two images share 2 · 16 Mi weights' worth of partial gradients, more than is kept apart.
    let (xs, weight) = (draw("xs", &[2, 1024, 3, 3]), draw("w", &[1024, 1024, 3, 3]));
    let gradient = |xs: &Tensor| {
        let store = nn::backward(&nn::conv2d(xs, &weight, None, spec).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
        store.get(&weight).unwrap().clone()
    };
    let both = gradient(&xs);
    let items: Vec<Tensor> = (0..2).map(|i| gradient(&xs.narrow(0, i, 1).unwrap().contiguous().unwrap())).collect();
    let sum = (&items[0] + &items[1]).unwrap();
    let largest = both.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let error = (both - sum).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error <= 1e-5 * largest, "{error} of {largest}");
}
