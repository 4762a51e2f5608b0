//! The pictures of a run, small enough for a page: target photos, generated images, samples, scored pictures.

use super::one_line;
use super::run::{Run, Verb};
use crate::base::Result;
use crate::eval::score_file;
use crate::io::{hash, images, png_text, thumbnail};
use crate::report::html::pictures::{Captioned, Picture};
use crate::systems::datum::start;
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

/// Images on a contact sheet at most.
pub const SHEET: usize = 48;
/// Unlabelled target images that an adaptation shows.
const TARGETS: usize = 12;
/// Longer side of images on a sheet, and of photos, in pixels.
const SMALL: usize = 256;
const LARGE: usize = 560;
/// Bytes of all pictures of a page at most; as text they take a third more.
const MOST_BYTES: usize = 4 << 20;

/// What the pictures of a page may still take.
#[derive(Debug)]
pub struct Album {
    left: usize,
    /// Pictures that found no room.
    pub left_out: usize,
}

/// Pictures and what to say about them.
#[derive(Debug, Default)]
pub struct Gallery {
    /// The pictures.
    pub pictures: Vec<Captioned>,
    /// A line above them.
    pub note: String,
    /// What could not be shown, and why.
    pub problems: Vec<String>,
}

/// A picture that is to be shown.
struct Wanted {
    path: PathBuf,
    side: usize,
    title: String,
    note: String,
}

impl Default for Album {
    fn default() -> Self {
        Self { left: MOST_BYTES, left_out: 0 }
    }
}

impl Album {
    /// The picture, if there is room for it.
    fn admit(&mut self, picture: Picture) -> Option<Picture> {
        if picture.jpeg.len() > self.left {
            self.left_out += 1;
            return None;
        }
        self.left -= picture.jpeg.len();
        Some(picture)
    }

    /// Reads and shrinks pictures side by side; those that cannot be read become problems.
    fn gallery(&mut self, wanted: Vec<Wanted>, note: String) -> Gallery {
        let load = |wanted: Wanted| {
            let picture = shrunk(&wanted.path, wanted.side, &wanted.title);
            picture.map(|picture| Captioned { picture, title: wanted.title, note: wanted.note })
        };
        let mut gallery = Gallery { note, ..Gallery::default() };
        for loaded in wanted.into_par_iter().map(load).collect::<Vec<_>>() {
            match loaded {
                Ok(Captioned { picture, title, note }) => {
                    let shown = self.admit(picture);
                    gallery.pictures.extend(shown.map(|picture| Captioned { picture, title, note }));
                }
                Err(error) => gallery.problems.push(one_line(&error)),
            }
        }
        gallery
    }

    /// The photos of the target, as far as the run's recipe leads to them.
    pub fn targets(&mut self, run: &Run) -> Gallery {
        match run.verb {
            Some(Verb::Personalize) => self.instance_photos(run),
            Some(Verb::Generate) => match used(run, "model", Verb::Personalize) {
                Some(model) => self.instance_photos(&model),
                None => self.style_photo(run),
            },
            // Its images are those of `images`; here is the photo that they go back to.
            Some(Verb::Adapt) => used(run, "target", Verb::Generate).map(|set| self.targets(&set)).unwrap_or_default(),
            _ => Gallery::default(),
        }
    }

    fn instance_photos(&mut self, run: &Run) -> Gallery {
        let prompt = run.recipe.text("instance_prompt");
        let mut problems = Vec::new();
        let mut wanted = Vec::new();
        for name in run.recipe.list("images") {
            let Some(path) = run.find(name) else {
                problems.push(format!("Target photo: {name} is no longer there."));
                continue;
            };
            let recorded = run.environment.get("inputs").and_then(|inputs| inputs.get(name)).and_then(Value::as_str);
            let changed = recorded.is_some_and(|recorded| hash::file(&path).is_ok_and(|found| found != recorded));
            let note = if changed { "the file has changed since" } else { "" };
            wanted.push(Wanted { path, side: LARGE, title: name.into(), note: note.into() });
        }
        let mut gallery = self.gallery(wanted, format!("Instance prompt: “{prompt}”"));
        gallery.problems.extend(problems);
        gallery
    }

    fn style_photo(&mut self, run: &Run) -> Gallery {
        let name = run.recipe.text("init_style");
        let photo = run.find(name).filter(|_| name != start::PROMPT).map(|path| Wanted {
            path,
            side: LARGE,
            title: name.into(),
            note: String::new(),
        });
        self.gallery(photo.into_iter().collect(), "The photo whose light and colours the images take over".into())
    }

    fn target_images(&mut self, run: &Run) -> Gallery {
        let is_joint = run.verb == Some(Verb::Train);
        let name = run.recipe.text(if is_joint { "generated" } else { "target" });
        if name.is_empty() {
            return Gallery::default();
        }
        // A data set is more than its folder; its run logged a few of its images.
        let logged: Vec<PathBuf> = run.target_images.iter().filter(|path| path.is_file()).cloned().collect();
        let logged = (!logged.is_empty()).then_some(logged);
        let inside = || run.find(name).filter(|_| !is_joint || logged.is_none()).and_then(|folder| images_in(&folder));
        let Some(all) = inside().or(logged) else {
            let problems = vec![format!("Target images: {name} is no folder that can be found from here.")];
            return Gallery { problems, ..Gallery::default() };
        };
        let wanted = evenly(&all, TARGETS).into_iter().map(|path| {
            let (title, note) = match png_text::read_facts(path) {
                Ok(Some(facts)) => (facts.prompt, format!("image {}, seed {}", facts.index, facts.seed)),
                _ => (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), String::new()),
            };
            Wanted { path: path.clone(), side: SMALL, title, note }
        });
        let note = format!("{} of the {} images in {name}, evenly taken", all.len().min(TARGETS), all.len());
        self.gallery(wanted.collect(), note)
    }

    /// The images that the run made, or those it adapted to, evenly taken, with prompts and seeds.
    pub fn images(&mut self, run: &Run) -> Gallery {
        match run.verb {
            Some(Verb::Generate | Verb::RenderStreet) => self.made(run),
            Some(Verb::Adapt | Verb::Train) => self.target_images(run),
            _ => Gallery::default(),
        }
    }

    fn made(&mut self, run: &Run) -> Gallery {
        let wanted = evenly(&run.items, SHEET).into_iter().filter_map(|item| {
            let text = |key: &str| item.get(key).and_then(Value::as_str);
            let number = |key: &str| item.get(key).and_then(Value::as_u64);
            let caption = item.get("captions").and_then(|captions| captions.get(0)).and_then(Value::as_str);
            let facts = [("image", number("index")), ("seed", number("seed"))];
            let facts = facts.iter().filter_map(|(word, value)| Some(format!("{word} {}", (*value)?)));
            let note = facts.chain(text("look").map(String::from)).collect::<Vec<_>>().join(", ");
            let title = text("prompt").or(caption).unwrap_or_default().to_string();
            Some(Wanted { path: run.path.join(text("file")?), side: SMALL, title, note })
        });
        let (shown, all) = (run.items.len().min(SHEET), run.items.len());
        let note = if shown < all { format!("{shown} of {all} images, evenly taken") } else { format!("All {all} images") };
        self.gallery(wanted.collect(), note)
    }

    /// The sample pictures of a training, in the order of steps.
    pub fn samples(&mut self, run: &Run) -> Gallery {
        let all = images_in(&run.path.join("samples")).unwrap_or_default();
        let prompt = match run.recipe.text("validation_prompt") {
            "" => run.recipe.text("instance_prompt"),
            prompt => prompt,
        };
        let wanted = evenly(&all, SHEET).into_iter().map(|path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let step = stem.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok());
            Wanted {
                path: path.clone(),
                side: SMALL,
                title: step.map_or(stem, |step| format!("step {step}")),
                note: String::new(),
            }
        });
        self.gallery(wanted.collect(), format!("Prompt: “{prompt}”"))
    }

    /// A file of a scored picture, as it is.
    pub fn scored(&mut self, run: &Path, file: &str, alt: String) -> Option<Picture> {
        // Only what `evaluate` can have written: nothing outside of the run, nothing but JPEG.
        let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        let path = run.join(score_file::FOLDER).join(file);
        if !inside {
            return None;
        }
        let jpeg = std::fs::read(&path).ok().filter(|bytes| bytes.starts_with(&[0xff, 0xd8, 0xff]))?;
        let size = images::inspect(&path).ok()?;
        self.admit(Picture { jpeg, size, alt })
    }
}

/// The image files of a folder, if it can be listed.
fn images_in(folder: &Path) -> Option<Vec<PathBuf>> {
    let files = folder.is_dir().then(|| images::list(folder).ok())??;
    Some(files.into_iter().filter(|path| images::is_image(path)).collect())
}

/// The run of `verb` that a setting leads to: the folder it names, or the one that folder lies in.
fn used(run: &Run, key: &str, verb: Verb) -> Option<Run> {
    let folder = run.find(run.recipe.text(key)).filter(|path| path.is_dir())?.canonicalize().ok()?;
    folder.ancestors().take(2).filter_map(|folder| Run::read(folder).ok()).find(|found| found.verb == Some(verb))
}

fn shrunk(path: &Path, side: usize, alt: &str) -> Result<Picture> {
    let small = thumbnail::shrink(images::read_rgb(path)?, side);
    Ok(Picture { jpeg: thumbnail::jpeg(&small, 80)?, size: (small.height, small.width), alt: alt.into() })
}

/// `count` of `items`, one from each of equally long parts, or all. The place within the part moves on by the golden ratio, so
/// that prompts that take turns all appear.
fn evenly<T>(items: &[T], count: usize) -> Vec<&T> {
    if items.len() <= count {
        return items.iter().collect();
    }
    let place = |i: usize| (i as f64 + (i as f64 * 0.618_034).fract()) * items.len() as f64 / count as f64;
    (0..count).map(|i| &items[(place(i) as usize).min(items.len() - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_taken_evenly() {
        let items: Vec<usize> = (0..240).collect();
        let taken = evenly(&items, 48);
        assert!(taken.len() == 48 && taken.is_sorted_by(|a, b| a < b), "{taken:?}");
        let prompts: std::collections::BTreeSet<usize> = taken.iter().map(|index| **index % 10).collect();
        assert_eq!(prompts.len(), 10, "prompts that take turns all appear");
        assert_eq!(evenly(&items[..3], 48), [&0, &1, &2]);
        assert!(evenly(&items[..0], 48).is_empty());
    }

    #[test]
    fn a_full_album_counts_what_it_leaves_out() {
        let picture = |bytes| Picture { jpeg: vec![0; bytes], size: (1, 1), alt: String::new() };
        let mut album = Album::default();
        assert!(album.admit(picture(MOST_BYTES - 1)).is_some() && album.admit(picture(2)).is_none());
        assert!(album.admit(picture(1)).is_some());
        assert_eq!(album.left_out, 1);
    }

    #[test]
    fn only_pictures_of_the_run_are_taken() {
        let run = tempfile::tempdir().unwrap();
        let secret = run.path().join("secret.jpg");
        std::fs::write(&secret, "no picture").unwrap();
        let folder = run.path().join("scores/set");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("0-photo.jpg"), "text").unwrap();
        let mut album = Album::default();
        for file in ["../secret.jpg", "/etc/hosts", "set/0-photo.jpg", "set/missing.jpg"] {
            assert!(album.scored(run.path(), file, String::new()).is_none(), "{file}");
        }
        let small = crate::io::images::RgbImage { height: 2, width: 3, pixels: vec![9; 18] };
        std::fs::write(folder.join("1-photo.jpg"), thumbnail::jpeg(&small, 80).unwrap()).unwrap();
        assert_eq!(album.scored(run.path(), "set/1-photo.jpg", String::new()).unwrap().size, (2, 3));
    }
}
