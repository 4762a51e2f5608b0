//! Checkpoints and the training loop, with a toy training that uses all of it.

use candle_core::{Device, Tensor};
use datum::base::metrics::Metrics;
use datum::base::progress::{Progress, Silent};
use datum::base::{Error, Result, Rng};
use datum::io::weights::SafetensorsFile;
use datum::nn::{Builder, Init, ParamStore};
use datum::train::Gradients;
use datum::train::checkpoint::{Checkpoint, Checkpointer, Resume};
use datum::train::driver::{Driver, Snapshot, Training};
use datum::train::guard::Guard;
use datum::train::optim::{AdamW, AdamWConfig, Group};
use datum::train::run_dir::RunDir;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// Fits y = W x to noise; each step accumulates two micro-batches drawn from the step's stream.
struct Toy {
    store: ParamStore,
    optimizer: AdamW,
    weight: Tensor,
    stop_after: Option<u64>,
    done: Mutex<u64>,
}

impl Toy {
    fn new(stop_after: Option<u64>) -> Self {
        let builder = Builder::random(3);
        let weight = builder.get(&[4, 3], "weight", Init::FanInUniform).unwrap();
        let store = builder.finish().unwrap();
        let config = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
        let optimizer = AdamW::new(vec![Group::all(&store, 0.01)], config).unwrap();
        Self { store, optimizer, weight, stop_after, done: Mutex::new(0) }
    }

    fn restored(checkpoint: &Checkpoint) -> Self {
        let mut toy = Self::new(None);
        toy.store.load(&checkpoint.part("weights").unwrap()).unwrap();
        toy.optimizer.load_state(&checkpoint.part("optimizer").unwrap()).unwrap();
        assert_eq!(checkpoint.state::<u64>().unwrap(), checkpoint.step());
        toy
    }
}

impl Training for Toy {
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let (mut gradients, mut total) = (Gradients::default(), 0.0);
        for micro in 0..2 {
            let mut rng = Rng::stream(1, "batch", &[step, micro]);
            let x = rng.normal_tensor(&[3, 2], &Device::Cpu)?;
            let loss = ((self.weight.matmul(&x)? - rng.normal_tensor(&[4, 2], &Device::Cpu)?)?.sqr()?.mean_all()? / 2.0)?;
            total += f64::from(loss.to_scalar::<f32>()?);
            gradients.accumulate(Gradients::of(&loss, self.optimizer.parameters())?)?;
        }
        let norm = self.optimizer.step(&gradients, 1e-2)?;
        Ok(Metrics::from([("loss".into(), total), ("gradient_norm".into(), norm)]))
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let parts = vec![("weights", self.store.tensors()), ("optimizer", self.optimizer.state()?)];
        Ok(Snapshot { parts, state: (*self.done.lock().unwrap()).into() })
    }

    fn after(&mut self, done: u64) -> Result<Metrics> {
        *self.done.lock().unwrap() = done;
        Ok(Metrics::from([("evaluation".into(), done as f64)]))
    }
}

fn checkpointer(folder: impl Into<std::path::PathBuf>, keep: usize) -> Checkpointer {
    Checkpointer::new(folder, keep, BTreeMap::from([("rank".into(), 4.into()), ("seed".into(), 1.into())]))
}

fn train(run: &RunDir, from: u64, to: u64, toy: &mut Toy) -> Result<()> {
    let checkpointer = checkpointer(run.checkpoints(), 2);
    let mut log = run.metrics(from)?;
    let left = std::cell::Cell::new(toy.stop_after.map_or(u64::MAX, |n| n - from));
    let stop = || {
        left.set(left.get() - 1);
        left.get() == 0
    };
    let mut driver = Driver { stop: &stop, ..Driver::new("toy", &checkpointer, 4, &Silent) };
    driver.sinks.push(&mut log);
    driver.run(from..to, toy)
}

fn bytes(run: &RunDir, file: &str) -> Vec<u8> {
    std::fs::read(run.path().join(file)).unwrap()
}

#[test]
fn an_interrupted_and_resumed_run_equals_an_uninterrupted_one() {
    let root = tempfile::tempdir().unwrap();
    let whole = RunDir::create(None, root.path(), "toy").unwrap();
    train(&whole, 0, 11, &mut Toy::new(None)).unwrap();

    let halved = RunDir::create(None, root.path(), "toy").unwrap();
    let interrupted = train(&halved, 0, 11, &mut Toy::new(Some(6)));
    assert!(matches!(interrupted, Err(Error::Interrupted { .. })), "{interrupted:?}");
    let checkpoint = checkpointer(halved.checkpoints(), 2).resume(&Resume::Latest, &Silent).unwrap();
    assert_eq!(checkpoint.step(), 6);
    train(&halved, 6, 11, &mut Toy::restored(&checkpoint)).unwrap();

    for file in ["metrics.jsonl", "checkpoints/step-000011/weights.safetensors", "checkpoints/step-000011/optimizer.safetensors"]
    {
        assert!(bytes(&whole, file) == bytes(&halved, file), "{file} differs");
    }
    // Thinned out to the weights: usable, but not resumable.
    let old = halved.checkpoints().join("step-000004");
    assert_eq!(std::fs::read_dir(&old).unwrap().count(), 1);
    Toy::new(None).store.load(&SafetensorsFile::open(&old.join("weights.safetensors")).unwrap()).unwrap();
    assert_eq!(checkpointer(halved.checkpoints(), 2).steps().unwrap(), [8, 11]);
}

#[test]
fn a_healthy_training_passes_the_guard() {
    let mut toy = Toy::new(None);
    let mut guard = Guard::new(toy.optimizer.parameters(), |_| false).unwrap();
    let loss = toy.weight.sqr().unwrap().sum_all().unwrap();
    let gradients = Gradients::of(&loss, toy.optimizer.parameters()).unwrap();
    toy.optimizer.step(&gradients, 1e-2).unwrap();
    guard.after_step(&gradients, 1e-2, toy.optimizer.parameters()).unwrap();
}

/// Collects warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Progress for Warnings {
    fn stage(&self, _: &str, _: u64, _: u64) {}
    fn step(&self, _: u64, _: &str) {}
    fn end(&self) {}
    fn say(&self, _: &str) {}
    fn warn(&self, line: &str) {
        self.0.lock().unwrap().push(line.into());
    }
}

fn saved(folder: &Path) -> Checkpointer {
    let checkpointer = checkpointer(folder, 3);
    let toy = Toy::new(None);
    for step in [1, 2, 3] {
        let snapshot = toy.snapshot().unwrap();
        checkpointer.save(step, &[("weights", &snapshot.parts[0].1), ("optimizer", &snapshot.parts[1].1)], &step).unwrap();
    }
    checkpointer
}

#[test]
fn damaged_checkpoints_are_passed_over_aloud() {
    let root = tempfile::tempdir().unwrap();
    let checkpointer = saved(root.path());
    let truncated = root.path().join("step-000003/optimizer.safetensors");
    let content = std::fs::read(&truncated).unwrap();
    std::fs::write(&truncated, &content[..content.len() - 1]).unwrap();
    let flipped = root.path().join("step-000002/weights.safetensors");
    let mut content = std::fs::read(&flipped).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&flipped, content).unwrap();

    let warnings = Warnings::default();
    assert_eq!(checkpointer.latest(&warnings).unwrap().unwrap().step(), 1);
    let warnings = warnings.0.into_inner().unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("step 3 is damaged") && warnings[0].contains("optimizer.safetensors"), "{warnings:?}");
    // Asked for by name, it is an error.
    assert_eq!(checkpointer.load(3).unwrap_err().exit_code(), 3);
    // Going on from step 1, the damaged ones do not crowd out the good ones.
    let toy = Toy::new(None).snapshot().unwrap();
    checkpointer.save(2, &[("weights", &toy.parts[0].1)], &2).unwrap();
    assert_eq!(checkpointer.steps().unwrap(), [1, 2]);
    assert_eq!(checkpointer.latest(&Silent).unwrap().unwrap().step(), 2);
}

#[test]
fn other_versions_and_other_recipes_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("checkpoints");
    saved(&folder);
    let other = Checkpointer::new(&folder, 3, BTreeMap::from([("rank".into(), 8.into()), ("seed".into(), 1.into())]));
    let message = other.latest(&Silent).unwrap_err().to_string();
    assert!(message.contains("`rank` was 4, now 8"), "{message}");

    let path = folder.join("step-000003/state.json");
    let newer = std::fs::read_to_string(&path).unwrap().replace("\"format_version\": 1", "\"format_version\": 9");
    std::fs::write(&path, newer).unwrap();
    let by_run_folder = Resume::Path(root.path().into());
    let message = checkpointer("elsewhere", 3).resume(&by_run_folder, &Silent).unwrap_err().to_string();
    assert!(message.contains("found version 9"), "{message}");
}

#[test]
fn nothing_to_resume_is_an_error_and_leftovers_are_ignored() {
    let root = tempfile::tempdir().unwrap();
    let checkpointer = checkpointer(root.path(), 1);
    std::fs::create_dir(root.path().join(".partial-x")).unwrap();
    std::fs::create_dir(root.path().join("step-000009")).unwrap();
    assert!(checkpointer.latest(&Silent).unwrap().is_none());
    assert_eq!(checkpointer.resume(&Resume::Latest, &Silent).unwrap_err().exit_code(), 3);
    checkpointer.save(1, &[], &()).unwrap();
    assert!(!root.path().join(".partial-x").exists());
    assert_eq!(checkpointer.steps().unwrap(), [1]);
}
