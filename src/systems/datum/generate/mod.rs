//! `datum generate`: the pseudo-target data set, image by image, resumable and shardable.

mod blank;
mod plan;

use super::base;
use super::config::GenerateConfig;
use super::start::InitialPhotos;
use crate::base::progress::Progress;
use crate::base::{Error, Result, device, interrupt};
use crate::diffusion::model::Model;
use crate::diffusion::sampler::SamplerKind;
use crate::diffusion::text_to_image::{Request, SamplingSettings, TextToImage, to_tensor};
use crate::io::images::RgbImage;
use crate::io::manifest::{self, GenerationFacts, ImageRecord, Manifest};
use crate::io::weights::TensorSource;
use crate::io::{hash, png_text, weights};
use crate::prompting::{ClassSet, PromptFile, Prompts};
use crate::train::run_dir::RunDir;
use blank::{Item, REDRAWS, draw_all, is_blank};
use candle_core::Tensor;
pub use plan::{Plan, plan};
use std::path::{Path, PathBuf};

/// Where the pictures lie below the output folder.
pub const IMAGE_FOLDER: &str = "images";
/// What is finished, in the folder of each run.
const MANIFEST: &str = "manifest.jsonl";

/// One part of a sharded generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Number of this part, from 0.
    pub index: u64,
    /// Number of parts.
    pub count: u64,
}

impl std::str::FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err(Error::Usage(format!("--shard {text}: expected I/N with I from 0 to N − 1, e.g. 0/4"))),
        }
    }
}

impl Shard {
    /// The run folder of this part of the set in `output`.
    pub fn folder(&self, output: &Path) -> PathBuf {
        output.join("shards").join(format!("{}-of-{}", self.index, self.count))
    }
}

/// What a generation left behind.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The folder of pictures.
    pub folder: PathBuf,
    /// Pictures made now.
    pub made: u64,
    /// Pictures that were there already, unchanged.
    pub kept: u64,
}

/// True if images were made in the run folder `run` before.
pub fn is_begun(run: &Path) -> bool {
    std::fs::metadata(run.join(MANIFEST)).is_ok_and(|file| file.len() > 0)
}

/// Makes the images of this shard that are not there yet. `output` holds `images/`; `run` the manifest of this shard.
///
/// # Errors
/// Unusable prompts, model, latents or initial photos; images of other settings in `output`; interruption (finished images are
/// kept).
pub fn run(
    config: &GenerateConfig,
    run: &RunDir,
    output: &Path,
    places: &base::Places,
    progress: &dyn Progress,
) -> Result<Generated> {
    config.validate()?;
    let prompts = PromptFile::open(&config.prompts)?.expand(&config.identifier, ClassSet::Things)?;
    let shard = if config.shard.is_empty() { Shard { index: 0, count: 1 } } else { config.shard.parse()? };
    let model = base::open(&config.model, &config.lora, places, progress)?;
    let mut job = Job::new(config, &model, prompts, progress)?;
    job.check(output)?;
    let mut manifest = Manifest::open(&run.path().join(MANIFEST))?;
    if let Some(bytes) = manifest.dropped_bytes() {
        progress.warn(&format!("the last line of the manifest was half written ({bytes} bytes) and is left out"));
    }
    let folder = output.join(IMAGE_FOLDER);
    let mine: Vec<u64> = (0..config.count).filter(|j| j % shard.count == shard.index).collect();
    let missing: Vec<u64> = mine.iter().copied().filter(|&j| !job.is_made(&manifest, j)).collect();
    let kept = (mine.len() - missing.len()) as u64;
    if kept > 0 {
        progress.say(&format!("{kept} of {} images are there already", mine.len()));
    }
    job.forget(&missing, &mut manifest, run.path())?;
    progress.stage("generate", mine.len() as u64, kept);
    // Without `--output`, the same command would begin another folder.
    let again = || format!("run the same command with `--output {}`; finished images are kept", output.display());
    let (mut made, mut blank) = (0, 0);
    for batch in missing.chunks(config.batch_size.max(1)) {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: again() });
        }
        let pictures = job.make(batch).map_err(|error| match error {
            Error::Interrupted { .. } => Error::Interrupted { resume: again() },
            other => other,
        })?;
        if kept + made == 0 && job.may_redraw() && pictures.iter().all(|(_, picture)| is_blank(picture)) {
            return Err(nothing_drawn(&config.model));
        }
        for (item, picture) in pictures {
            let record = job.write(&folder, run.path(), item, &picture)?;
            if is_blank(&picture) {
                progress.warn(&format!("{} shows nothing: one colour, {}", record.file, job.tries(item)));
                blank += 1;
            }
            manifest.append(record)?;
            made += 1;
        }
        progress.step(kept + made, "");
    }
    progress.end();
    if blank > 0 {
        progress.warn(&format!("{blank} of {made} images show nothing; they stay in the set unless you remove them"));
    }
    Ok(Generated { folder, made, kept })
}

struct Job<'a> {
    config: &'a GenerateConfig,
    sampler: TextToImage,
    settings: SamplingSettings,
    prompts: Prompts,
    /// (height, width) in pixels.
    size: (usize, usize),
    model_hash: String,
    latents: Option<Tensor>,
    initial: InitialPhotos,
}

impl<'a> Job<'a> {
    fn new(config: &'a GenerateConfig, model: &Model, prompts: Prompts, progress: &dyn Progress) -> Result<Self> {
        let kind: SamplerKind = config.scheduler.parse()?;
        let latent_size = model.latent_size(config.height, config.width)?;
        let factor = model.vae_config.downsampling();
        let size = (latent_size.0 * factor, latent_size.1 * factor);
        let settings = SamplingSettings {
            sampler: kind,
            steps: config.steps,
            guidance_scale: config.guidance_scale,
            negative_prompt: config.negative_prompt.clone(),
            latent_size,
        };
        Ok(Self {
            config,
            sampler: model.sampler()?,
            settings,
            prompts,
            size,
            model_hash: model.digest()?,
            latents: read_latents(config, [model.vae_config.latent_channels, latent_size.0, latent_size.1])?,
            initial: InitialPhotos::open(config, size, progress)?,
        })
    }

    fn name(&self, j: u64) -> String {
        format!("im_{j}_p{}.png", self.prompts.of_image(j).0)
    }

    /// Blank images get other seeds, unless what they start from is given.
    fn may_redraw(&self) -> bool {
        self.latents.is_none()
    }

    /// How often an image was tried, for people.
    fn tries(&self, item: Item) -> String {
        if item.redraws > 0 { format!("also with {} other seeds", item.redraws) } else { "from the latents given".into() }
    }

    fn facts(&self, item: Item) -> GenerationFacts {
        let j = item.j;
        GenerationFacts {
            index: j,
            redraws: item.redraws,
            prompt: self.prompts.of_image(j).1.to_string(),
            negative_prompt: self.config.negative_prompt.clone(),
            seed: self.config.seed.wrapping_add(offset(item)),
            steps: self.config.steps,
            guidance_scale: self.config.guidance_scale,
            scheduler: self.config.scheduler.clone(),
            height: self.size.0,
            width: self.size.1,
            model_hash: self.model_hash.clone(),
            start: self.initial.described(j).to_string(),
        }
    }

    /// All images of a set are made alike: those in `output`, of any shard and any number, have to be of these settings.
    fn check(&self, output: &Path) -> Result<()> {
        for path in manifests(output) {
            let (records, _) = manifest::read::<ImageRecord>(&path)?;
            let other = records.iter().map(|record| &record.facts).find(|facts| **facts != self.facts(item(facts)));
            if let Some(there) = other {
                return Err(Error::Usage(format!(
                    "{} holds images of other settings: image {} has {}\n  next: choose another `--output`, or remove that folder",
                    output.display(),
                    there.index,
                    differences(there, &self.facts(item(there)))
                )));
            }
        }
        Ok(())
    }

    /// Leaves out what the manifest says of the images `missing` (ascending), and pictures of them under other names.
    fn forget(&self, missing: &[u64], manifest: &mut Manifest, run: &Path) -> Result<()> {
        let is_missing = |record: &ImageRecord| missing.binary_search(&record.facts.index).is_ok();
        for record in manifest.records().iter().filter(|record| is_missing(record)) {
            let path = run.join(&record.file);
            if !path.ends_with(self.name(record.facts.index)) && path.is_file() {
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        manifest.retain(|record| !is_missing(record))
    }

    /// True when image `j` was made with exactly these settings and is intact.
    fn is_made(&self, manifest: &Manifest, j: u64) -> bool {
        manifest.intact(j).is_some_and(|record| record.facts == self.facts(item(&record.facts)))
    }

    /// The pictures of a batch, each with the number of seeds that gave nothing.
    fn make(&mut self, batch: &[u64]) -> Result<Vec<(Item, RgbImage)>> {
        draw_all(batch, self.may_redraw(), |items| self.draw(items))
    }

    fn draw(&mut self, items: &[Item]) -> Result<Vec<RgbImage>> {
        let mut requests = items.iter().map(|&item| self.request(item)).collect::<Result<Vec<_>>>()?;
        let painted = match self.initial.needs_pictures() {
            true => self.sampler.sample(&requests, &self.style_settings())?.into_iter().map(Some).collect(),
            false => vec![None; items.len()],
        };
        for ((request, item), painted) in requests.iter_mut().zip(items).zip(painted) {
            request.initial = self.initial(item.j, painted.as_ref())?;
        }
        self.sampler.sample(&requests, &self.settings)
    }

    /// Seconds that a batch takes, about.
    fn rehearse(&self, batch: &[u64]) -> Result<f64> {
        let mut requests = batch.iter().map(|&j| self.request(Item { j, redraws: 0 })).collect::<Result<Vec<_>>>()?;
        let mut seconds = 0.0;
        if self.initial.needs_pictures() {
            seconds += self.sampler.rehearse(&requests, &self.style_settings())?.as_secs_f64();
        }
        for (request, &j) in requests.iter_mut().zip(batch) {
            request.initial = self.initial(j, None)?;
        }
        Ok(seconds + self.sampler.rehearse(&requests, &self.settings)?.as_secs_f64())
    }

    /// How the pictures are painted whose colours initial photos take over.
    fn style_settings(&self) -> SamplingSettings {
        SamplingSettings { steps: self.config.style_steps(), ..self.settings.clone() }
    }

    /// An image from noise alone.
    fn request(&self, item: Item) -> Result<Request> {
        let (j, facts) = (item.j, self.facts(item));
        let latents = match &self.latents {
            None => None,
            Some(all) if (j as usize) < all.dim(0)? => Some(all.narrow(0, j as usize, 1)?),
            Some(all) => {
                return Err(Error::data(
                    &self.config.latents,
                    format!("latents for image {j}"),
                    format!("{} latents", all.dim(0)?),
                    "give a file with as many latents as `--count`",
                ));
            }
        };
        Ok(Request { prompt: facts.prompt, seed: facts.seed, latents, initial: None })
    }

    /// Latents of the photo that image `j` starts from.
    fn initial(&self, j: u64, painted: Option<&RgbImage>) -> Result<Option<(Tensor, f64)>> {
        let Some(photo) = self.initial.photo(j, painted)? else { return Ok(None) };
        Ok(Some((self.sampler.encode(&to_tensor(&[photo])?)?, self.config.strength)))
    }

    fn write(&self, folder: &Path, run: &Path, item: Item, picture: &RgbImage) -> Result<ImageRecord> {
        let path = folder.join(self.name(item.j));
        let facts = self.facts(item);
        png_text::write(&path, &picture.pixels, &facts, self.settings.sampler.display_name())?;
        let file = relative(&path, run);
        Ok(ImageRecord { file, blake3: hash::file(&path)?, facts })
    }
}

/// The image that a record is of.
fn item(facts: &GenerationFacts) -> Item {
    Item { j: facts.index, redraws: facts.redraws }
}

/// From the seed of the set to that of an image: seeds of other tries lie far from those of other images.
fn offset(item: Item) -> u64 {
    item.j.wrapping_add(u64::from(item.redraws) << 32)
}

/// The first images of a set are all blank: so would be the others.
fn nothing_drawn(model: &str) -> Error {
    Error::environment(
        format!("the first images by `{model}` show nothing but one colour, also with {REDRAWS} other seeds; none was kept"),
        "try `--dtype f32`, since half precision draws black where values leave its range; a lower --guidance-scale; or another model",
    )
}

/// The manifests of a whole set and of its shards.
fn manifests(output: &Path) -> impl Iterator<Item = PathBuf> {
    let shards = std::fs::read_dir(output.join("shards")).into_iter().flatten().flatten().map(|entry| entry.path());
    shards.chain([output.to_path_buf()]).map(|folder| folder.join(MANIFEST)).filter(|path| path.is_file())
}

/// What two images of one number differ in, for people.
fn differences(there: &GenerationFacts, wanted: &GenerationFacts) -> String {
    let (there, wanted) = (described(there), described(wanted));
    let differ = there.iter().zip(&wanted).filter(|(there, wanted)| there != wanted);
    differ.map(|((name, there), (_, wanted))| format!("{name} {there} there, {wanted} wanted")).collect::<Vec<_>>().join("; ")
}

/// Names and values as the user gave them.
fn described(facts: &GenerationFacts) -> [(&'static str, String); 9] {
    let start = if facts.start.is_empty() { "noise" } else { facts.start.as_str() };
    [
        ("seed", facts.seed.wrapping_sub(offset(item(facts))).to_string()),
        ("prompt", format!("{:?}", facts.prompt)),
        ("negative prompt", format!("{:?}", facts.negative_prompt)),
        ("steps", facts.steps.to_string()),
        ("guidance scale", facts.guidance_scale.to_string()),
        ("scheduler", facts.scheduler.clone()),
        ("size", format!("{}x{}", facts.width, facts.height)),
        ("model", facts.model_hash.clone()),
        ("start", start.to_string()),
    ]
}

/// `path` as seen from `folder`: below it, or in the output folder two levels up (shards).
fn relative(path: &Path, folder: &Path) -> String {
    match path.strip_prefix(folder) {
        Ok(inside) => inside.display().to_string(),
        Err(_) => Path::new("../..").join(IMAGE_FOLDER).join(path.file_name().unwrap_or_default()).display().to_string(),
    }
}

/// `item` is the shape of one image's latents.
fn read_latents(config: &GenerateConfig, item: [usize; 3]) -> Result<Option<Tensor>> {
    if config.latents.is_empty() {
        return Ok(None);
    }
    let path = Path::new(&config.latents);
    let source = weights::open(path)?;
    let shape = source.shapes().get("latents").cloned().unwrap_or_default();
    if shape.len() != 4 || shape[1..] != item {
        return Err(Error::data(
            path,
            format!("a tensor `latents` [N, {}, {}, {}] for this model and size", item[0], item[1], item[2]),
            if shape.is_empty() { "none of that name".to_string() } else { format!("shape {shape:?}") },
            "write standard normal noise in that shape",
        ));
    }
    Ok(Some(source.load("latents", &device::current())?))
}
