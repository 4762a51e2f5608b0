//! The operations of the self-test, with sizes that cross the blocks of kernels and sizes that are odd.

use super::reference;
use crate::base::Rng;
use crate::nn::norm::{GroupNormOp, batch_norm, group_norm, layer_norm};
use crate::nn::{self, ConvSpec};
use candle_core::{Result, Tensor};

/// An operation on tensors.
pub type Op = fn(&[Tensor]) -> Result<Tensor>;

/// One operation of the test.
pub struct Case {
    pub name: &'static str,
    /// Shapes of the arguments; the larger size last.
    pub sizes: [&'static [&'static [usize]]; 2],
    /// That many arguments, from the first, may be bf16; the others (weights and biases) stay f32.
    pub in_bf16: usize,
    pub op: Op,
    /// The same formula from candle's primitives.
    pub reference: Op,
    pub tolerance: f64,
}

/// Sums of hundreds of products in f32.
const TOLERANCE: f64 = 1e-5;

const fn case(name: &'static str, sizes: [&'static [&'static [usize]]; 2], in_bf16: usize, op: Op, reference: Op) -> Case {
    Case { name, sizes, in_bf16, op, reference, tolerance: TOLERANCE }
}

/// A convolution with bias; its groups follow from the shapes.
macro_rules! conv {
    ($name:literal, $sizes:expr, $stride:literal, $padding:literal, $dilation:literal) => {
        case(
            $name,
            $sizes,
            2,
            |a| nn::conv2d(&a[0], &a[1], Some(&a[2]), spec(a, $stride, $padding, $dilation)?),
            |a| reference::conv2d(&a[0], &a[1], &a[2], spec(a, $stride, $padding, $dilation)?),
        )
    };
}

fn spec(arguments: &[Tensor], stride: usize, padding: usize, dilation: usize) -> Result<ConvSpec> {
    Ok(ConvSpec { stride, padding, dilation, groups: arguments[0].dim(1)? / arguments[1].dim(1)? })
}

/// The whole test.
pub fn cases() -> Vec<Case> {
    [convolutions(), matrices(), elementwise(), norms(), maps(), losses(), masks()].into_iter().flatten().collect()
}

fn convolutions() -> Vec<Case> {
    vec![
        conv!("conv 3x3", [&[&[2, 5, 7, 9], &[3, 5, 3, 3], &[3]], &[&[2, 64, 32, 32], &[48, 64, 3, 3], &[48]]], 1, 1, 1),
        conv!(
            "conv 3x3 stride 2",
            [&[&[1, 5, 8, 10], &[3, 5, 3, 3], &[3]], &[&[2, 32, 32, 48], &[48, 32, 3, 3], &[48]]],
            2,
            1,
            1
        ),
        conv!(
            "conv 3x3 dilation 6",
            [&[&[1, 5, 13, 15], &[3, 5, 3, 3], &[3]], &[&[1, 32, 32, 32], &[32, 32, 3, 3], &[32]]],
            1,
            6,
            6
        ),
        conv!("conv 1x1", [&[&[1, 5, 7, 9], &[3, 5, 1, 1], &[3]], &[&[2, 64, 32, 32], &[96, 64, 1, 1], &[96]]], 1, 0, 1),
        conv!(
            "conv 3x3, bias of each image",
            [&[&[2, 5, 7, 9], &[3, 5, 3, 3], &[2, 3]], &[&[2, 64, 32, 32], &[48, 64, 3, 3], &[2, 48]]],
            1,
            1,
            1
        ),
        conv!("conv groups", [&[&[2, 6, 11, 9], &[4, 3, 3, 3], &[4]], &[&[2, 32, 24, 24], &[64, 8, 3, 3], &[64]]], 1, 1, 1),
        conv!("depthwise 3x3", [&[&[2, 5, 7, 9], &[5, 1, 3, 3], &[5]], &[&[2, 96, 32, 32], &[96, 1, 3, 3], &[96]]], 1, 1, 1),
        conv!("depthwise 7x7", [&[&[1, 5, 9, 11], &[5, 1, 7, 7], &[5]], &[&[1, 96, 32, 32], &[96, 1, 7, 7], &[96]]], 1, 3, 1),
        conv!("depthwise stride 2", [&[&[2, 5, 8, 6], &[5, 1, 3, 3], &[5]], &[&[2, 96, 32, 32], &[96, 1, 3, 3], &[96]]], 2, 1, 1),
    ]
}

fn matrices() -> Vec<Case> {
    vec![
        case(
            "linear",
            [&[&[3, 5, 7], &[9, 7], &[9]], &[&[2, 256, 320], &[640, 320], &[640]]],
            2,
            |a| nn::linear(&a[0], &a[1], Some(&a[2])),
            |a| reference::linear(&a[0], &a[1], &a[2]),
        ),
        case(
            "attention",
            [&[&[1, 70, 64], &[1, 45, 64], &[1, 45, 64]], &[&[1, 256, 320], &[1, 256, 320], &[1, 256, 320]]],
            3,
            |a| nn::attention(&a[0], &a[1], &a[2], 8, 0.2, false),
            |a| reference::attention(&a[0], &a[1], &a[2], 8, 0.2, false),
        ),
        case(
            "attention, causal",
            [&[&[1, 45, 96], &[1, 45, 96], &[1, 45, 96]], &[&[2, 77, 768], &[2, 77, 768], &[2, 77, 768]]],
            3,
            |a| nn::attention(&a[0], &a[1], &a[2], 12, 0.125, true),
            |a| reference::attention(&a[0], &a[1], &a[2], 12, 0.125, true),
        ),
        case(
            "attention, wide head",
            [&[&[1, 33, 160], &[1, 77, 160], &[1, 77, 160]], &[&[1, 128, 512], &[1, 128, 512], &[1, 128, 512]]],
            3,
            |a| nn::attention(&a[0], &a[1], &a[2], 1, 0.05, false),
            |a| reference::attention(&a[0], &a[1], &a[2], 1, 0.05, false),
        ),
    ]
}

fn elementwise() -> Vec<Case> {
    const SIZES: [&[&[usize]]; 2] = [&[&[7, 83]], &[&[2, 64, 64, 32]]];
    vec![
        case("gelu", SIZES, 1, |a| nn::gelu(&a[0]), |a| reference::gelu(&a[0])),
        case("quick gelu", SIZES, 1, |a| nn::quick_gelu(&a[0]), |a| reference::gated_by_itself(&a[0], 1.702)),
        case("silu", SIZES, 1, |a| nn::silu(&a[0]), |a| reference::gated_by_itself(&a[0], 1.0)),
        case("relu", SIZES, 1, |a| nn::relu(&a[0]), |a| a[0].relu()),
        case("relu6", SIZES, 1, |a| nn::relu6(&(&a[0] * 4.0)?), |a| (&a[0] * 4.0)?.clamp(0.0, 6.0)),
        case("geglu", [&[&[7, 84]], &[&[256, 640]]], 1, |a| nn::geglu(&a[0]), |a| reference::geglu(&a[0])),
        case(
            "split heads",
            [&[&[2, 7, 12]], &[&[2, 300, 320]]],
            1,
            |a| nn::split_heads(&a[0], 4),
            |a| {
                let (batch, tokens, width) = a[0].dims3()?;
                a[0].reshape((batch, tokens, 4, width / 4))?.transpose(1, 2)?.contiguous()
            },
        ),
        case("softmax", [&[&[7, 83]], &[&[512, 1024]]], 1, |a| nn::softmax(&a[0]), |a| reference::softmax(&a[0])),
    ]
}

fn norms() -> Vec<Case> {
    const MAPS: [&[&[usize]]; 2] = [&[&[2, 6, 5, 7], &[6], &[6]], &[&[2, 96, 32, 32], &[96], &[96]]];
    vec![
        case(
            "layer norm",
            [&[&[5, 67], &[67], &[67]], &[&[1024, 320], &[320], &[320]]],
            1,
            |a| layer_norm(&a[0], &a[1], &a[2], 1e-5),
            |a| reference::layer_norm(&a[0], &a[1], &a[2], 1e-5),
        ),
        case(
            "group norm",
            MAPS,
            1,
            |a| group_norm(&a[0], &a[1], &a[2], GroupNormOp { groups: 3, eps: 1e-5, silu: false }),
            |a| reference::group_norm(&a[0], &a[1], &a[2], 3, 1e-5),
        ),
        case(
            "group norm and silu",
            MAPS,
            1,
            |a| group_norm(&a[0], &a[1], &a[2], GroupNormOp { groups: 3, eps: 1e-5, silu: true }),
            |a| reference::gated_by_itself(&reference::group_norm(&a[0], &a[1], &a[2], 3, 1e-5)?, 1.0),
        ),
        case(
            "batch norm",
            MAPS,
            1,
            |a| batch_norm(&a[0], &a[1], &a[2], 1e-5, None),
            |a| reference::batch_norm(&a[0], &a[1], &a[2], 1e-5),
        ),
        case(
            "batch norm and relu",
            MAPS,
            1,
            |a| batch_norm(&a[0], &a[1], &a[2], 1e-5, Some(f32::INFINITY)),
            |a| reference::batch_norm(&a[0], &a[1], &a[2], 1e-5)?.relu(),
        ),
    ]
}

fn maps() -> Vec<Case> {
    const SIZES: [&[&[usize]]; 2] = [&[&[2, 3, 11, 13]], &[&[2, 32, 32, 48]]];
    vec![
        case("bilinear up", SIZES, 1, |a| nn::resize_bilinear(&a[0], UP, false), |a| reference::bilinear(&a[0], UP, false)),
        case("bilinear down", SIZES, 1, |a| nn::resize_bilinear(&a[0], DOWN, true), |a| reference::bilinear(&a[0], DOWN, true)),
        case("nearest", SIZES, 1, |a| nn::resize_nearest(&a[0], UP), |a| reference::nearest(&a[0], UP)),
        case(
            "max pool 3x3 stride 2",
            SIZES,
            // bf16 has equal maxima, whose gradient the formula shares.
            0,
            |a| nn::max_pool2d(&a[0], 3, ConvSpec { stride: 2, padding: 1, ..ConvSpec::default() }),
            |a| reference::max_pool2d(&a[0], 3, 2, 1),
        ),
    ]
}

const UP: (usize, usize) = (75, 101);
const DOWN: (usize, usize) = (7, 10);

fn losses() -> Vec<Case> {
    vec![
        case(
            "cross entropy",
            [&[&[2, 7, 9, 11]], &[&[2, 19, 64, 96]]],
            1,
            |a| {
                let (labels, weights) = labels(&a[0])?;
                nn::cross_entropy(&a[0], &labels, Some(&weights))
            },
            |a| {
                let (labels, weights) = labels(&a[0])?;
                reference::cross_entropy(&a[0], &labels, &weights)
            },
        ),
        case(
            "mse",
            [&[&[7, 30], &[7, 30]], &[&[2, 4, 64, 64], &[2, 4, 64, 64]]],
            2,
            |a| nn::mse(&a[0], &a[1]),
            |a| (&a[0] - &a[1])?.sqr()?.mean_all(),
        ),
    ]
}

/// What mask classification adds.
fn masks() -> Vec<Case> {
    vec![
        case(
            "attention with bias",
            [&[&[2, 70, 64], &[2, 45, 64], &[2, 45, 64]], &[&[2, 100, 256], &[2, 512, 256], &[2, 512, 256]]],
            3,
            |a| nn::attention_with_bias(&a[0], &a[1], &a[2], &bias(a)?, 8, 0.2),
            |a| reference::attention_with_bias(&a[0], &a[1], &a[2], &bias(a)?, 8, 0.2),
        ),
        case(
            "deformable attention",
            [
                &[&[2, 47, 3, 5], &[2, 9, 3, 2, 4, 2], &[2, 9, 3, 2, 4]],
                &[&[2, 672, 2, 32], &[2, 100, 2, 2, 4, 2], &[2, 100, 2, 2, 4]],
            ],
            1,
            |a| nn::deformable_attention(&a[0], &a[1], &a[2], levels(a)?, &references(a)?),
            |a| reference::deformable_attention(&a[0], &a[1], &a[2], levels(a)?, &references(a)?),
        ),
        case(
            "samples at points",
            [&[&[2, 7, 9]], &[&[4, 48, 64]]],
            1,
            |a| nn::sample_points(&a[0], uniform("points", 2 * 300 * a[0].dim(0)?), 300),
            |a| reference::sample_points(&a[0], &uniform("points", 2 * 300 * a[0].dim(0)?)),
        ),
        case(
            "mask losses",
            [&[&[3, 83]], &[&[20, 12544]]],
            1,
            |a| nn::mask_losses(&a[0], uniform("targets", a[0].elem_count())),
            |a| reference::mask_losses(&a[0], &uniform("targets", a[0].elem_count())),
        ),
    ]
}

fn uniform(name: &str, count: usize) -> Vec<f32> {
    let mut rng = Rng::stream(0, name, &[]);
    (0..count).map(|_| rng.uniform()).collect()
}

/// A bias that hides a third of the keys (B, N, M), for queries (B, heads, N, d) and keys (B, heads, M, d).
fn bias(arguments: &[Tensor]) -> Result<Tensor> {
    let shape = (arguments[0].dim(0)?, arguments[0].dim(1)?, arguments[1].dim(1)?);
    let values = uniform("bias", shape.0 * shape.1 * shape.2);
    let values = values.into_iter().map(|x| if x < 0.33 { -1e30 } else { x }).collect();
    Tensor::from_vec(values, shape, arguments[0].device())
}

/// Sizes of levels for values (B, N, heads, d).
fn levels(arguments: &[Tensor]) -> Result<&'static [(usize, usize)]> {
    Ok(if arguments[0].dim(1)? == 47 { &[(5, 7), (3, 4)] } else { &[(16, 32), (8, 20)] })
}

/// A point for each query, for offsets (B, Q, …). Times a size it is exact, so that f32 and f64 find the same pixels: slopes
/// jump between them.
fn references(arguments: &[Tensor]) -> Result<Vec<f32>> {
    Ok(uniform("references", 2 * arguments[1].dim(1)?).iter().map(|x| (x * 64.0).round() / 64.0).collect())
}

/// Labels of which some are ignored, and weights, on the device of the logits (B, K, H, W).
fn labels(logits: &Tensor) -> Result<(Tensor, Tensor)> {
    let (batch, classes, height, width) = logits.dims4()?;
    let mut rng = Rng::stream(0, "labels", &[]);
    let count = batch * height * width;
    let labels: Vec<u32> = (0..count).map(|_| if rng.below(9) == 0 { 255 } else { rng.below(classes) as u32 }).collect();
    let weights: Vec<f32> = (0..count).map(|_| rng.uniform()).collect();
    let shape = (batch, height, width);
    Ok((Tensor::from_vec(labels, shape, logits.device())?, Tensor::from_vec(weights, shape, logits.device())?))
}
