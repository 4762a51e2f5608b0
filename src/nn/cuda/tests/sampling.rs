//! What Mask2Former needs: deformable attention, attention with a bias, samples at points, mask losses.

use super::*;
use crate::nn::cuda::programs::{DeformableInputs, DeformableSizes, PointSizes};

/// Points of the unit square, some outside, on the border and far away.
fn points(count: usize) -> Vec<f32> {
    let mut rng = Rng::stream(3, "points", &[]);
    let mut points: Vec<f32> = (0..2 * count).map(|_| rng.uniform() * 1.2 - 0.1).collect();
    for (point, x) in points.iter_mut().zip([0.0, 1.0, -0.5, 1e9, 1.0, -1e30]) {
        *point = x;
    }
    points
}

#[test]
fn deformable_attention() {
    // Levels, queries, heads, dimensions of a head, points. More tokens than a block owns, more samples than it has threads.
    type Case = (&'static [(usize, usize)], usize, usize, usize, usize);
    let cases: [Case; 4] = [
        (&[(5, 7), (17, 19)], 90, 2, 8, 4),
        (&[(3, 4)], 300, 1, 40, 1),
        (&[(1, 1), (2, 9), (30, 21)], 5, 3, 3, 2),
        (&[(8, 8)], 1, 1, 70, 3),
    ];
    in_each_type(|k| {
        for (levels, queries, heads, dim, points) in cases {
            let images = 2;
            let tokens = levels.iter().map(|level| level.0 * level.1).sum();
            let sizes = DeformableSizes { images, tokens, queries, heads, dim, points, levels: levels.to_vec() };
            let value = draw(k, "value", &[images, tokens, heads, dim]);
            let offsets = (floats("offsets", &[images, queries, heads, levels.len(), points, 2]) * 2.0).unwrap();
            let weights = floats("weights", &[images, queries, heads, levels.len(), points]);
            let references = super::sampling::points(queries);
            let op = |a: &[Tensor]| nn::deformable_attention(&a[0], &a[1], &a[2], levels, &references);
            let results = expected(&[&value, &offsets, &weights], op, |shape| draw(k, "g", shape));
            let shapes: Vec<f32> = sizes.shapes().iter().map(|x| *x as f32).collect();
            let given = DeformableInputs {
                value: &up(k, &value),
                offsets: &up_floats(&offsets),
                weights: &up_floats(&weights),
                references: &Buffer::from_values(&references, Kind::F32),
                shapes: &Buffer::from_values(&shapes, Kind::U32),
            };
            let (what, g) = (format!("deformable {sizes:?}"), up(k, &results[1]));
            same(k, &what, &k.deformable(&given, &sizes).unwrap(), &results[0]);
            let for_value = k.deformable_value_gradient(&given, &g, &sizes).unwrap();
            same(k, &format!("{what}, values"), &for_value, &results[2]);
            let (for_offsets, for_weights) = k.deformable_slopes(&given, &g, &sizes).unwrap();
            same(k, &format!("{what}, offsets"), &for_offsets, &results[3]);
            same(k, &format!("{what}, weights"), &for_weights, &results[4]);
        }
    });
}

#[test]
fn samples_at_points() {
    in_each_type(|k| {
        for (maps, height, width, per_map, own) in [(3, 17, 21, 300, true), (2, 5, 7, 40, false), (1, 1, 9, 1, false)] {
            let sizes = PointSizes { maps, height, width, per_map, own };
            let points = points(if own { maps * per_map } else { per_map });
            let xs = draw(k, "maps", &[maps, height, width]);
            let op = |a: &[Tensor]| nn::sample_points(&a[0], points.clone(), per_map);
            let results = expected(&[&xs], op, |shape| draw(k, "g", shape));
            let (points, g) = (Buffer::from_values(&points, Kind::F32), up(k, &results[1]));
            let what = format!("samples {sizes:?}");
            same(k, &what, &k.sample_points(&up(k, &xs), &points, sizes).unwrap(), &results[0]);
            same(k, &format!("{what}, gradient"), &k.sample_points_gradient(&points, &g, sizes).unwrap(), &results[2]);
        }
    });
}

#[test]
fn mask_losses() {
    in_each_type(|k| {
        for (masks, points) in [(3, 700), (1, 1), (2, 256)] {
            let logits = (draw(k, "logits", &[masks, points]) * 4.0).unwrap();
            let mut rng = Rng::stream(0, "targets", &[]);
            let targets: Vec<f32> = (0..masks * points).map(|_| rng.uniform().round()).collect();
            let op = |a: &[Tensor]| nn::mask_losses(&a[0], targets.clone());
            let results = expected(&[&logits], op, |shape| floats("g", shape));
            let (logits, targets, g) = (up(k, &logits), Buffer::from_values(&targets, Kind::F32), up_floats(&results[1]));
            same(k, "mask losses", &k.mask_losses(&logits, &targets, masks, points).unwrap(), &results[0]);
            let gradient = k.mask_losses_gradient(&logits, &targets, &g, masks, points).unwrap();
            same(k, "mask losses, gradient", &gradient, &results[2]);
        }
    });
}

#[test]
fn attention_with_bias() {
    in_each_type(|k| {
        for (images, sharing, queries, keys, dim) in [(2, 3, 70, 45, 8), (1, 2, 5, 150, 65), (2, 1, 64, 64, 40)] {
            let scale = 1.0 / (dim as f32).sqrt();
            let at = |name: &str, len: usize| draw(k, name, &[images, sharing, len, dim]);
            let (q, ks, v) = (at("q", queries), at("k", keys), at("v", keys));
            // Many keys are hidden, all but the last for the first query: whole tiles of them.
            let mut rng = Rng::stream(0, "bias", &[]);
            let hidden = |query: usize, key: usize| query == 0 && key < keys - 1;
            let bias: Vec<f32> = (0..images * queries * keys)
                .map(|i| if hidden(i / keys % queries, i % keys) || rng.below(3) == 0 { -1e30 } else { rng.uniform() })
                .collect();
            let map = Tensor::from_vec(bias.clone(), (images, queries, keys), &Device::Cpu).unwrap();
            let op = |a: &[Tensor]| {
                let [q, k, v] = [nn::join_heads(&a[0])?, nn::join_heads(&a[1])?, nn::join_heads(&a[2])?];
                nn::split_heads(&nn::attention_with_bias(&q, &k, &v, &map, sharing, scale)?, sharing)
            };
            let results = expected(&[&q, &ks, &v], op, |shape| draw(k, "g", shape));
            let (q, ks, v, g) = (up(k, &q), up(k, &ks), up(k, &v), up(k, &results[1]));
            let bias = Buffer::from_values(&bias, Kind::F32);
            let sizes = AttentionSizes { heads: images * sharing, queries, keys, dim, scale, causal: false, sharing };
            let (out, log_sums) = k.attention([&q, &ks, &v], Some(&bias), sizes).unwrap();
            let what = format!("attention with bias {sizes:?}");
            same(k, &what, &out, &results[0]);
            let means = k.attention_means(&out, &g, sizes).unwrap();
            let given = AttentionGiven { bias: Some(&bias), gradient: &g, log_sums: &log_sums, means: &means };
            for wanted in 0..3 {
                let gradient = k.attention_gradient([&q, &ks, &v], &given, sizes, wanted).unwrap();
                same(k, &format!("{what}, gradient {wanted}"), &gradient, &results[2 + wanted]);
            }
        }
    });
}
