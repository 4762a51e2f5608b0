//! The generated images of joint training, and the photos they were painted from.

use super::config::TrainConfig;
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::Dataset;
use crate::io::manifest::{self, ImageRecord, START_DIGITS};
use crate::io::{hash, images};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The images inside a run of `clouds generate`.
const IMAGES: &str = "images";

const NEXT: &str = "leave `--init-images` out: the teacher then labels the images";

/// A generated image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// What the student learns from.
    pub picture: PathBuf,
    /// What teacher and refinement see instead: the photo it was painted from, where that was wished.
    pub photo: Option<PathBuf>,
}

/// The generated images in a folder or a run: all of the size that training sees.
///
/// # Errors
/// Images that are missing or have another size; with `init_images`, images whose photo is not known or not there.
pub fn generated(config: &TrainConfig, size: (usize, usize), progress: &dyn Progress) -> Result<Vec<Generated>> {
    let run = Path::new(&config.generated);
    let pictures = pictures(run, size, progress)?;
    if config.init_images.is_empty() {
        return Ok(pictures.into_iter().map(|picture| Generated { picture, photo: None }).collect());
    }
    let folder = Path::new(&config.init_images);
    let (photos, names) = (photos_by_digest(folder)?, digests_by_name(run)?);
    let with_photo = |picture: PathBuf| {
        let name = picture.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(digest) = names.get(&name) else {
            let expected = "an image that `generate --init-images` painted from a photo, in the run's manifest.jsonl";
            return Err(Error::data(&picture, expected, "none such", NEXT));
        };
        let Some(photo) = photos.get(digest) else {
            let expected = format!("the photo that {} was painted from, of hash {digest}…", picture.display());
            return Err(Error::data(
                folder,
                expected,
                format!("{} other photos", photos.len()),
                "give the folder that `generate` had",
            ));
        };
        Ok(Generated { picture, photo: Some(photo.clone()) })
    };
    let found = pictures.into_iter().map(with_photo).collect::<Result<Vec<_>>>()?;
    progress.say(&format!("the teacher labels the photos in {} that they were painted from", folder.display()));
    Ok(found)
}

/// The photos of a folder by the first digits of their hashes.
fn photos_by_digest(folder: &Path) -> Result<HashMap<String, PathBuf>> {
    let photos = images::scan(folder)?.images;
    photos.into_iter().map(|photo| Ok((hash::file(&photo)?[..START_DIGITS].to_string(), photo))).collect()
}

/// For every image of a run that was painted from a photo its name and the first digits of the photo's hash.
fn digests_by_name(run: &Path) -> Result<HashMap<String, String>> {
    let run = if run.ends_with(IMAGES) { run.parent().unwrap_or(run) } else { run };
    let shards = std::fs::read_dir(run.join("shards")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut names = HashMap::new();
    for manifest in shards.chain([run.to_path_buf()]).map(|folder| folder.join("manifest.jsonl")).filter(|path| path.is_file()) {
        let (records, _) = manifest::read::<ImageRecord>(&manifest)
            .map_err(|_| Error::data(&manifest, "the manifest of a run of `generate`", "records of another kind", NEXT))?;
        for ImageRecord { file, facts, .. } in records {
            let name = Path::new(&file).file_name().unwrap_or_default().to_string_lossy().into_owned();
            match facts.photo() {
                Some(digest) => names.insert(name, digest.to_string()),
                None => names.remove(&name),
            };
        }
    }
    Ok(names)
}

/// Files of the images.
fn pictures(folder: &Path, size: (usize, usize), progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        let next = "check the path; `clouds generate` makes them";
        return Err(Error::data(folder, "a folder of generated images", "no folder", next));
    }
    let inside = folder.join(IMAGES);
    let folder = if inside.is_dir() { &inside } else { folder };
    let samples = Dataset::from_folder(folder)?.samples(None)?;
    let (mut unreadable, mut others, mut fitting) = (Vec::new(), Vec::new(), Vec::new());
    let total = samples.len();
    for sample in samples {
        match images::inspect(&sample.image) {
            Err(error) => unreadable.push(error),
            Ok(found) if found == size => fitting.push(sample.image),
            Ok(found) => others.push((sample, found)),
        }
    }
    if let Some((first, (height, width))) = others.first() {
        let expected = format!("generated images of {}x{} (width x height) like the crops of source images", size.1, size.0);
        let found = format!("{} of another size, such as {width}x{height}", others.len());
        let next = format!("set crop.width={width} and crop.height={height}, or generate them in that size");
        return Err(Error::data(&first.image, expected, found, next));
    }
    if let Some(line) = images::unreadable_line(&unreadable, total) {
        if fitting.is_empty() {
            return Err(Error::data(folder, "readable images", line, "replace them"));
        }
        progress.warn(&line);
    }
    progress.say(&format!("generated: {} images in {}", fitting.len(), folder.display()));
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::progress::Silent;
    use crate::io::images::{RgbImage, write_png};
    use crate::io::manifest::tests::facts;
    use crate::io::manifest::{GenerationFacts, Manifest};

    fn picture(path: &Path, value: u8) -> String {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_png(path, &RgbImage { height: 32, width: 64, pixels: vec![value; 32 * 64 * 3] }, &[]).unwrap();
        hash::file(path).unwrap()
    }

    /// Three images, the first and the last from the second of two photos, told by the manifest of the run or of a shard.
    fn run_of(folder: &Path, manifest: &str) -> TrainConfig {
        let digests = [10, 20].map(|value| picture(&folder.join(format!("photos/{value}.png")), value));
        let mut manifest = Manifest::open(&folder.join(manifest)).unwrap();
        for (index, start) in [(0, 1), (1, 0), (2, 1)] {
            let file = format!("images/im_{index}_p0.png");
            let blake3 = picture(&folder.join("run").join(&file), index as u8);
            let start = format!("photo {} strength 0.3", &digests[start][..START_DIGITS]);
            manifest.append(ImageRecord { file, blake3, facts: GenerationFacts { start, ..facts(index) } }).unwrap();
        }
        let text = |name: &str| folder.join(name).display().to_string();
        TrainConfig { generated: text("run"), init_images: text("photos"), ..TrainConfig::default() }
    }

    fn photos(config: &TrainConfig) -> Result<Vec<Option<String>>> {
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        Ok(generated(config, (32, 64), &Silent)?.into_iter().map(|image| image.photo.map(name)).collect())
    }

    #[test]
    fn every_image_has_the_photo_it_was_painted_from() {
        let own = |names: [&str; 3]| names.map(|name| Some(name.to_string())).to_vec();
        for manifest in ["run/manifest.jsonl", "run/shards/0-of-1/manifest.jsonl"] {
            let dir = tempfile::tempdir().unwrap();
            let config = run_of(dir.path(), manifest);
            assert_eq!(photos(&config).unwrap(), own(["20.png", "10.png", "20.png"]));
            let inside = TrainConfig { generated: format!("{}/images", config.generated), ..config.clone() };
            assert_eq!(photos(&inside).unwrap(), own(["20.png", "10.png", "20.png"]));
            let plain = TrainConfig { init_images: String::new(), ..config };
            assert_eq!(photos(&plain).unwrap(), [None, None, None]);
        }
    }

    #[test]
    fn photos_that_are_not_there_or_not_known_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = run_of(dir.path(), "run/manifest.jsonl");
        std::fs::remove_file(dir.path().join("photos/20.png")).unwrap();
        let message = photos(&config).unwrap_err().to_string();
        assert!(message.contains("im_0_p0.png") && message.contains("1 other photos"), "{message}");
        std::fs::remove_file(dir.path().join("run/manifest.jsonl")).unwrap();
        let message = photos(&config).unwrap_err().to_string();
        assert!(message.contains("manifest.jsonl") && message.contains("--init-images"), "{message}");
    }
}
