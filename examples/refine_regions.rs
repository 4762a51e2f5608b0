//! What refinement by regions of like colour does to pseudo-labels: street scenes have exact labels, a simulated teacher blurs,
//! shifts and breaks them, and both are scored.
//!
//! ```text
//! cargo run --release --example refine_regions -- [SCENES [HEIGHT WIDTH [search]]]
//! ```

use datum::base::{Result, Rng};
use datum::data::street::{Look, Scene};
use datum::eval::{ConfusionMatrix, Scores};
use datum::io::images::RgbImage;
use datum::labels::{IGNORE, LabelMap};
use datum::systems::clouds::refine::{RefineConfig, label_of, refine};
use datum::systems::clouds::regions::Regions;

const CLASSES: usize = 19;

/// How a teacher errs; lengths in pixels of a picture 512 high.
struct Teacher {
    name: &'static str,
    /// Typical displacement of borders.
    shift: f32,
    /// Reach of the vote that rounds outlines and swallows thin things.
    blur: usize,
    /// Patches of a wrong class.
    blobs: usize,
}

const TEACHERS: [Teacher; 3] = [
    Teacher { name: "mild", shift: 2.0, blur: 3, blobs: 6 },
    Teacher { name: "medium", shift: 4.0, blur: 6, blobs: 12 },
    Teacher { name: "strong", shift: 8.0, blur: 10, blobs: 24 },
];

/// Borders of the label displaced by a field that changes every 40 pixels.
fn shifted(label: &LabelMap, shift: f32, rng: &mut Rng) -> LabelMap {
    let (rows, columns) = (label.height / 40 + 2, label.width / 40 + 2);
    let field: Vec<[f32; 2]> = (0..rows * columns).map(|_| [rng.normal() * shift, rng.normal() * shift]).collect();
    let id = |at: usize| {
        let (y, x) = ((at / label.width) as f32 / 40.0, (at % label.width) as f32 / 40.0);
        let (row, column, down, right) = (y as usize, x as usize, y.fract(), x.fract());
        let mix = |c: usize| {
            let value = |r: usize, k: usize| field[(row + r) * columns + column + k][c];
            let line = |r: usize| value(r, 0) * (1.0 - right) + value(r, 1) * right;
            line(0) * (1.0 - down) + line(1) * down
        };
        let place = |at: usize, by: f32, length: usize| (at as f32 + by).round().clamp(0.0, length as f32 - 1.0) as usize;
        label.ids[place(at / label.width, mix(1), label.height) * label.width + place(at % label.width, mix(0), label.width)]
    };
    LabelMap { ids: (0..label.ids.len()).map(id).collect(), ..*label }
}

/// The most frequent class within `reach` rows and columns; pixels without a class do not vote.
fn voted(label: &LabelMap, reach: usize) -> LabelMap {
    let (height, width) = (label.height, label.width);
    let mut best = vec![(0u32, 0u8); label.ids.len()];
    for class in 0..CLASSES as u8 {
        // Sums over everything above and to the left.
        let mut sums = vec![0u32; (height + 1) * (width + 1)];
        for y in 0..height {
            for x in 0..width {
                let here = u32::from(label.ids[y * width + x] == class);
                let at = |y: usize, x: usize| y * (width + 1) + x;
                sums[at(y + 1, x + 1)] = here + sums[at(y, x + 1)] + sums[at(y + 1, x)] - sums[at(y, x)];
            }
        }
        for (at, best) in best.iter_mut().enumerate() {
            let (y, x) = (at / width, at % width);
            let (top, bottom) = (y.saturating_sub(reach), (y + reach + 1).min(height));
            let (left, right) = (x.saturating_sub(reach), (x + reach + 1).min(width));
            let sum = |y: usize, x: usize| sums[y * (width + 1) + x];
            let votes = sum(bottom, right) + sum(top, left) - sum(top, right) - sum(bottom, left);
            *best = (*best).max((votes, class));
        }
    }
    LabelMap { ids: best.into_iter().map(|(_, class)| class).collect(), ..*label }
}

impl Teacher {
    fn see(&self, truth: &LabelMap, rng: &mut Rng) -> LabelMap {
        let unit = truth.height as f32 / 512.0;
        let mut seen = voted(&shifted(truth, self.shift * unit, rng), (self.blur as f32 * unit).round() as usize);
        for _ in 0..self.blobs {
            let class = rng.below(CLASSES) as u8;
            let (y, x) = (rng.below(truth.height) as f32, rng.below(truth.width) as f32);
            let (tall, wide) = (rng.uniform_in(8.0, 40.0) * unit, rng.uniform_in(8.0, 40.0) * unit);
            for (at, id) in seen.ids.iter_mut().enumerate() {
                let (row, column) = ((at / truth.width) as f32, (at % truth.width) as f32);
                if ((row - y) / tall).powi(2) + ((column - x) / wide).powi(2) < 1.0 {
                    *id = class;
                }
            }
        }
        seen
    }
}

struct Example {
    image: RgbImage,
    truth: LabelMap,
    seen: LabelMap,
    index: u64,
}

fn examples(teacher: &Teacher, look: Look, scenes: std::ops::Range<u64>, size: (usize, usize)) -> Vec<Example> {
    let example = |index: u64| {
        let rendered = Scene::new(77, index).render(size, look);
        let seen = teacher.see(&rendered.labels, &mut Rng::stream(0, "teacher", &[index]));
        Example { image: rendered.image, truth: rendered.labels, seen, index }
    };
    scenes.map(example).collect()
}

/// Scores before and after, with the teacher's class where no mask is; and both on the pixels of masks alone, with their share.
struct Outcome {
    before: Option<f64>,
    after: Option<f64>,
    before_inside: Option<f64>,
    after_inside: Option<f64>,
    assigned: f64,
}

fn score(examples: &[Example], regions: &Regions, config: &RefineConfig) -> Result<Outcome> {
    let mut matrices: [ConfusionMatrix; 4] = std::array::from_fn(|_| ConfusionMatrix::new(CLASSES));
    let (mut assigned, mut pixels) = (0, 0);
    for one in examples {
        let rng = &mut Rng::stream(0, "refine", &[one.index]);
        let masks = refine(regions, &one.image, &one.seen, config, rng)?;
        let bare = label_of(&masks, &one.seen, false);
        let inside: Vec<u8> =
            bare.ids.iter().zip(&one.truth.ids).map(|(id, truth)| if *id == IGNORE { IGNORE } else { *truth }).collect();
        let inside = LabelMap { ids: inside, ..one.truth };
        matrices[0].add(&one.seen, &one.truth)?;
        matrices[1].add(&label_of(&masks, &one.seen, true), &one.truth)?;
        matrices[2].add(&one.seen, &inside)?;
        matrices[3].add(&bare, &inside)?;
        assigned += bare.ids.iter().filter(|id| **id != IGNORE).count();
        pixels += bare.ids.len();
    }
    let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
    let miou = |matrix: &ConfusionMatrix| Scores::new(matrix, &names, examples.len() as u64).miou;
    let [before, after, before_inside, after_inside] = matrices.each_ref().map(miou);
    Ok(Outcome { before, after, before_inside, after_inside, assigned: assigned as f64 / pixels as f64 })
}

fn line(name: &str, outcome: &Outcome) {
    let percent = |value: Option<f64>| format!("{:5.1}", 100.0 * value.unwrap_or(f64::NAN));
    println!(
        "{name:40} {} -> {}   inside masks ({:4.1} % of all pixels) {} -> {}",
        percent(outcome.before),
        percent(outcome.after),
        100.0 * outcome.assigned,
        percent(outcome.before_inside),
        percent(outcome.after_inside)
    );
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (scenes, size) = (number(0, 20) as u64, (number(1, 512), number(2, 1024)));
    if arguments.get(3).is_some_and(|word| word == "search") {
        return search(scenes, size);
    }
    for look in [Look::Day, Look::Dusk, Look::Rain] {
        for teacher in &TEACHERS {
            // Other scenes than those of the search.
            let examples = examples(teacher, look, 1000..1000 + scenes, size);
            for min_area in [5000, 500, 50] {
                let config = RefineConfig { min_area, ..RefineConfig::default() };
                let name = format!("{look}, {} teacher, min_area {min_area}", teacher.name);
                line(&name, &score(&examples, &Regions::default(), &config)?);
            }
        }
    }
    Ok(())
}

/// One value after the other on the medium teacher.
fn search(scenes: u64, size: (usize, usize)) -> Result<()> {
    let config = RefineConfig { min_area: 50, ..RefineConfig::default() };
    for look in [Look::Day, Look::Dusk] {
        let examples = examples(&TEACHERS[1], look, 0..scenes, size);
        for sigma in [0.0, 0.5, 0.8] {
            for scale in [3.0, 10.0, 30.0, 100.0, 300.0] {
                for (min_size, share) in [(10, 0.5), (40, 0.5), (40, 0.6)] {
                    let regions = Regions { sigma, scale, min_size, share };
                    line(&format!("{look}, {sigma} {scale} {min_size} {share}"), &score(&examples, &regions, &config)?);
                }
            }
        }
    }
    Ok(())
}
