//! What a small CLIP knows without labels, on drawn streets that it has not seen.
//!
//! ```text
//! datum dataset render-street --recipe clouds-nano-clip --seed 4000 --count 600 --output unseen
//! cargo run --release --example clip_zero_shot -- CLIP unseen
//! ```
//!
//! CLIP is the folder `clip` of a run of `clouds pretrain`, or a packed file. First: how often an image finds its caption among 32,
//! and a caption its image, where the 32 are of all looks and where they are of one, so that light and weather do not help. Then, for
//! each class, whether images that show it are nearer to "a photo of cars" than images that do not: the area under the ROC curve (50 % is chance), and the accuracy at the best threshold of the first half of the images on the
//! second half, beside that of always giving the commoner answer.

use candle_core::Tensor;
use datum::base::{Error, Result, device};
use datum::data::Normalize;
use datum::io::images;
use datum::models::clip::{Clip, NORMALIZATION, unit};
use datum::nn::{Pass, linear};
use datum::systems::clouds::clip_file::{ClipFile, token_ids};
use datum::systems::clouds::pretrain::{CANDIDATES, Retrieval, area_under_curve};
use datum::systems::shared::segmenter_file::normalize;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One line of the manifest, as far as it is used here.
#[derive(Deserialize)]
struct Scene {
    file: String,
    look: String,
    captions: Vec<String>,
    things: BTreeMap<String, usize>,
}

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [clip, folder] = arguments.as_slice() else {
        return Err(Error::Usage("expected CLIP FOLDER".into()));
    };
    let file = ClipFile::open(clip)?;
    let (clip, scenes, normalize) = (file.clip()?, scenes(folder)?, normalize(NORMALIZATION));
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for scenes in scenes.chunks(CANDIDATES) {
        let pictures = scenes.iter().map(|scene| image(&folder.join(&scene.file), &normalize)).collect::<Result<Vec<_>>>()?;
        images.push(unit(&clip.image_vectors(&Tensor::stack(&pictures, 0)?, &Pass::eval())?)?);
        let captions: Vec<String> = scenes.iter().map(|scene| scene.captions[0].clone()).collect();
        texts.push(clip.text_vectors(&token_ids(&file.tokenizer, &captions)?)?);
    }
    let (images, texts) = (Tensor::cat(&images, 0)?, Tensor::cat(&texts, 0)?);
    let looks: BTreeSet<&String> = scenes.iter().map(|scene| &scene.look).collect();
    let of = |look: &String| (0..scenes.len()).filter(|&i| scenes[i].look == *look).collect::<Vec<_>>();
    println!("| among {CANDIDATES} | pairs | image finds caption | caption finds image | by chance |\n|---|---|---|---|---|");
    retrieval("of all looks", &[(0..scenes.len()).collect()], &scenes, (&images, &texts))?;
    retrieval("of one look", &looks.into_iter().map(of).collect::<Vec<_>>(), &scenes, (&images, &texts))?;
    println!();
    presence(&file, &clip, &scenes, &images)
}

/// A row of the first table: each list of scenes is cut into groups, in its order.
fn retrieval(name: &str, lists: &[Vec<usize>], scenes: &[Scene], (images, texts): (&Tensor, &Tensor)) -> Result<()> {
    let mut found = Retrieval::default();
    for group in lists.iter().flat_map(|list| list.chunks_exact(CANDIDATES)) {
        let captions: Vec<String> = group.iter().map(|&i| scenes[i].captions[0].clone()).collect();
        let rows = Tensor::from_iter(group.iter().map(|&i| i as u32), images.device())?;
        found.add(&images.index_select(&rows, 0)?, &texts.index_select(&rows, 0)?, &captions)?;
    }
    let percent = |count: f64| 100.0 * found.share(count);
    let (image, text) = (percent(found.image_to_text as f64), percent(found.text_to_image as f64));
    println!("| {name} | {} | {image:.1} % | {text:.1} % | {:.1} % |", found.pairs, percent(found.by_chance));
    Ok(())
}

fn scenes(folder: &Path) -> Result<Vec<Scene>> {
    let path = folder.join("manifest.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let scene = |line: &str| {
        serde_json::from_str(line).map_err(|e| {
            Error::data(&path, "a rendering of `datum dataset render-street`", e.to_string(), "render the scenes anew")
        })
    };
    text.lines().map(scene).collect()
}

fn image(path: &Path, normalize: &Normalize) -> Result<Tensor> {
    let image = images::read_rgb(path)?;
    Ok(normalize.apply(&image, (image.height, image.width), &device::current())?)
}

/// The table of classes.
fn presence(file: &ClipFile, clip: &Clip, scenes: &[Scene], images: &Tensor) -> Result<()> {
    println!("| class | images with it | area under the curve | accuracy | commoner answer |\n|---|---|---|---|---|");
    let classes: BTreeSet<&String> = scenes.iter().flat_map(|scene| scene.things.keys()).collect();
    let mut areas = Vec::new();
    for class in classes {
        let plural = if class.ends_with('s') { format!("{class}es") } else { format!("{class}s") };
        let prompts = [format!("a photo of a {class}"), format!("a photo of {plural}")];
        let texts = unit(&clip.text_vectors(&token_ids(&file.tokenizer, &prompts)?)?)?;
        let scores = linear(images, &texts, None)?.mean(1)?.to_vec1::<f32>()?;
        let present: Vec<bool> = scenes.iter().map(|scene| scene.things.contains_key(class)).collect();
        let Some(area) = area_under_curve(&scores, &present) else { continue };
        let half = scores.len() / 2;
        let threshold = best_threshold(&scores[..half], &present[..half]);
        let accuracy = accuracy(&scores[half..], &present[half..], threshold);
        let share = present.iter().filter(|p| **p).count() as f64 / present.len() as f64;
        let common = present[half..].iter().filter(|p| **p).count() as f64 / (present.len() - half) as f64;
        let common = common.max(1.0 - common);
        println!(
            "| {class} | {:.0} % | {:.1} % | {:.1} % | {:.1} % |",
            100.0 * share,
            100.0 * area,
            100.0 * accuracy,
            100.0 * common
        );
        areas.push(area);
    }
    println!("| mean | | {:.1} % | | |", 100.0 * areas.iter().sum::<f64>() / areas.len().max(1) as f64);
    Ok(())
}

fn accuracy(scores: &[f32], present: &[bool], threshold: f32) -> f64 {
    let right = scores.iter().zip(present).filter(|(score, present)| (**score >= threshold) == **present).count();
    right as f64 / scores.len().max(1) as f64
}

fn best_threshold(scores: &[f32], present: &[bool]) -> f32 {
    let candidates = scores.iter().copied().chain([f32::INFINITY]);
    let rated = candidates.map(|threshold| (accuracy(scores, present, threshold), threshold));
    rated.reduce(|best, next| if next.0 > best.0 { next } else { best }).map_or(f32::INFINITY, |(_, threshold)| threshold)
}
