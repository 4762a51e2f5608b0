//! Sentences that name what a picture shows, in the words of the prompt lists.

use super::look::Look;
use super::model::class;
use crate::base::Rng;
use crate::labels::LabelMap;

/// A thing counts as visible from this many pixels at 512×256 on, and stuff from that many.
const THING_PIXELS: usize = 40;
/// See [`THING_PIXELS`].
const STUFF_PIXELS: usize = 900;

/// Singular and plural of the things, in the order in which captions may name them.
pub(super) const THINGS: [(u8, &str, &str); 10] = [
    (class::CAR, "car", "cars"),
    (class::TRUCK, "truck", "trucks"),
    (class::BUS, "bus", "buses"),
    (class::TRAIN, "train", "trains"),
    (class::PERSON, "person", "persons"),
    (class::RIDER, "rider", "riders"),
    (class::BICYCLE, "bicycle", "bicycles"),
    (class::MOTORCYCLE, "motorcycle", "motorcycles"),
    (class::TRAFFIC_LIGHT, "traffic light", "traffic lights"),
    (class::TRAFFIC_SIGN, "traffic sign", "traffic signs"),
];

/// Stuff that is worth a word.
const STUFF: [(u8, &[&str]); 5] = [
    (class::VEGETATION, &["trees", "vegetation", "trees"]),
    (class::BUILDING, &["buildings", "houses", "buildings"]),
    (class::FENCE, &["a fence", "fences"]),
    (class::WALL, &["a wall", "walls"]),
    (class::TERRAIN, &["terrain", "grass"]),
];

/// Visible things per class in order of their train ids, from the samples of each object of a picture of `area` pixels.
pub(super) fn count(samples: &[usize], objects: &[u8], area: usize, per_pixel: usize) -> Vec<(u8, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    // Samples at the nominal size of 512×256, without rounding.
    let visible = |&samples: &usize| samples * 512 * 256 >= THING_PIXELS * per_pixel * area.max(1);
    for (_, &class) in samples.iter().zip(objects).skip(1).filter(|(samples, _)| visible(samples)) {
        *counts.entry(class).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// A few captions; the first names every class of things that is visible.
pub(super) fn write(things: &[(u8, usize)], labels: &LabelMap, look: Look, rng: &mut Rng) -> Vec<String> {
    let mut named: Vec<String> = THINGS
        .iter()
        .filter_map(|&(class, one, many)| {
            let number = things.iter().find(|(other, _)| *other == class)?.1;
            Some(quantity(number, one, many))
        })
        .collect();
    let counts = labels.histogram();
    let area = labels.ids.len().max(1) as u64;
    let mut stuff: Vec<String> = Vec::new();
    for (class, words) in STUFF {
        let seen = counts[usize::from(class)] * 512 * 256 >= STUFF_PIXELS as u64 * area;
        let word = words[rng.below(words.len())];
        if seen && rng.uniform() < 0.6 {
            stuff.push(word.into());
        }
    }
    let mut captions = Vec::new();
    rng.shuffle(&mut named);
    let all: Vec<String> = named.iter().cloned().chain(stuff.iter().cloned()).collect();
    captions.push(sentence(&all, look, rng));
    if named.len() > 2 {
        let few: Vec<String> = named[..1 + rng.below(2)].to_vec();
        captions.push(sentence(&few, look, rng));
    }
    // One short caption in the manner of the prompt lists.
    if let Some(&(class, number)) = (!things.is_empty()).then(|| &things[rng.below(things.len())]) {
        let words = THINGS.iter().find(|(other, ..)| *other == class);
        captions.extend(words.map(|(_, one, many)| match number {
            1 => format!("a photo of {}", with_article(one)),
            _ => format!("a photo of {many}"),
        }));
    }
    captions
}

/// A street with all of `parts`, in that look.
fn sentence(parts: &[String], look: Look, rng: &mut Rng) -> String {
    let (place, inside) = [
        ("a street", "on a street"),
        ("an urban scene", "in a city"),
        ("a city street", "on a city street"),
        ("a road in a town", "on a road in a town"),
        ("a street scene", "in a town"),
    ][rng.below(5)];
    let opening = ["a photo of", "a photo of", "a picture of", "a view of", "a dashcam photo of"][rng.below(5)];
    let light = lights(look)[rng.below(3)];
    let list = join(parts);
    match (parts.is_empty(), rng.below(4)) {
        (true, _) => format!("{opening} {place} {light}"),
        (_, 0) => format!("{opening} {list} {inside} {light}"),
        (_, 1) => format!("{opening} {place} {light} with {list}"),
        _ => format!("{opening} {place} with {list} {light}"),
    }
}

fn lights(look: Look) -> [&'static str; 3] {
    match look {
        Look::Day => ["by day", "in daylight", "during the day"],
        Look::Dusk => ["at dusk", "at sunset", "at dusk"],
        Look::Night => ["at night", "at night", "in the dark"],
        Look::Fog => ["in fog", "in dense fog", "on a foggy day"],
        Look::Rain => ["in rain", "in the rain", "on a rainy day"],
        Look::Snow => ["in snow", "in the snow", "on a snowy day"],
    }
}

fn quantity(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => with_article(one),
        2 => format!("two {many}"),
        3 => format!("three {many}"),
        4 => format!("four {many}"),
        5..=7 => format!("several {many}"),
        _ => format!("many {many}"),
    }
}

fn with_article(word: &str) -> String {
    format!("a {word}")
}

/// `a`, `a and b`, `a, b and c`.
fn join(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(id: u8) -> LabelMap {
        LabelMap { height: 8, width: 16, ids: vec![id; 128] }
    }

    #[test]
    fn captions_name_every_class_with_its_number() {
        let things = [(class::PERSON, 2), (class::CAR, 9), (class::BUS, 1)];
        for seed in 0..20 {
            let rng = &mut Rng::stream(seed, "captions", &[]);
            let captions = write(&things, &map(class::VEGETATION), Look::Dusk, rng);
            for part in ["two persons", "many cars", "a bus"] {
                assert!(captions[0].contains(part), "{captions:?}");
            }
            assert!(captions[0].contains("dusk") || captions[0].contains("sunset"), "{captions:?}");
            assert!(captions[2].starts_with("a photo of "), "{captions:?}");
        }
    }

    #[test]
    fn what_is_too_small_is_not_named() {
        let objects = [class::SKY, class::CAR, class::CAR, class::PERSON];
        // 512×256 pixels, 4 samples each: 160 samples are 40 pixels.
        assert_eq!(count(&[9999, 160, 159, 400], &objects, 512 * 256, 4), [(class::PERSON, 1), (class::CAR, 1)]);
        assert_eq!(count(&[0], &[], 0, 4), []);
    }

    #[test]
    fn a_street_without_things_still_has_a_caption() {
        let captions = write(&[], &map(class::ROAD), Look::Fog, &mut Rng::stream(0, "captions", &[]));
        assert_eq!(captions.len(), 1);
        assert!(captions[0].contains("fog"), "{captions:?}");
    }
}
