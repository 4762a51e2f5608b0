//! Large batches on the CPU: micro-batches side by side.

use super::Gradients;
use crate::base::metrics::Metrics;
use crate::base::{Result, device, threads};
use crate::nn::{backward, backward_from, recording};
use candle_core::{Tensor, Var};
use rayon::ThreadPool;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Memory for the gradients of micro-batches in work. A batch of a large network has few workers, each with many threads.
const GRADIENT_BYTES: usize = 2 << 30;

/// Computes the gradients of a batch as those of micro-batches, as many at the same time as there are threads.
///
/// Between operations candle's backward pass fills and adds tensors in one thread, which a batch as a whole waits for. Side by
/// side, micro-batches keep all threads busy. Not for batch norm with the statistics of the batch, see [`crate::base::group::Shares`]. How a batch is
/// divided does not depend on the number of threads, and neither do results. Other devices than the CPU compute it whole.
pub struct MicroBatches {
    /// Most items of a micro-batch.
    most: usize,
    /// Threads of each worker; none: one micro-batch after the other.
    workers: Vec<ThreadPool>,
}

impl MicroBatches {
    /// For batches of `items` in micro-batches of at most `most`, with the threads of the pool this is called from.
    pub fn new<'p>(items: usize, most: usize, parameters: impl IntoIterator<Item = (&'p str, &'p Var)>) -> Result<Self> {
        let available = rayon::current_num_threads();
        let bytes: usize = parameters.into_iter().map(|(_, var)| var.elem_count() * 4).sum();
        let workers = match parts(items, most).len().min(available).min(GRADIENT_BYTES / bytes.max(1)) {
            0 | 1 => 0,
            workers => workers,
        };
        let pool = |worker| threads::pool(available / workers + usize::from(worker < available % workers));
        Ok(Self { most, workers: (0..workers).map(pool).collect::<Result<_>>()? })
    }

    /// The gradients of the mean loss of `items`, and the means of the numbers. `losses(range)` gives the mean loss of the items of
    /// that range, to start the backward pass from, and named numbers that are means over them; all are scalars, read behind the
    /// backward pass. Only micro-batches in work hold activations.
    ///
    /// # Errors
    /// Those of the micro-batch with the smallest number of those that failed.
    pub fn gradients<'p>(
        &self,
        items: usize,
        parameters: impl IntoIterator<Item = (&'p str, &'p Var)>,
        losses: impl Fn(Range<usize>) -> Result<(Tensor, Numbers)> + Sync,
    ) -> Result<(Gradients, Metrics)> {
        let parameters: Vec<_> = parameters.into_iter().collect();
        let parts = parts(items, self.most);
        let mut sum = Sum::default();
        let part = |part: usize| {
            let share = parts[part].len() as f64 / items as f64;
            let (loss, numbers) = recording(|| losses(parts[part].clone()))?;
            let loss = if parts.len() > 1 { (loss * share)? } else { loss };
            Ok((Gradients::of(&loss, parameters.iter().copied())?, read(numbers, share)?))
        };
        self.each(parts.len(), part, |number, part| sum.add(number, part));
        sum.total
    }

    /// As [`Self::gradients`] for a loss that needs the outputs of all items together. `forward(range)` gives tensors whose first
    /// dimension are the items of that range; `join` makes loss and numbers of all of them. All activations are held until then.
    ///
    /// # Errors
    /// As [`Self::gradients`], and those of `join`.
    pub fn joined<'p>(
        &self,
        items: usize,
        parameters: impl IntoIterator<Item = (&'p str, &'p Var)>,
        forward: impl Fn(Range<usize>) -> Result<Vec<Tensor>> + Sync,
        join: impl FnOnce(&[Tensor]) -> Result<(Tensor, Numbers)>,
    ) -> Result<(Gradients, Metrics)> {
        let parameters: Vec<_> = parameters.into_iter().collect();
        let parts = parts(items, self.most);
        if parts.len() == 1 {
            let (loss, numbers) = recording(|| join(&forward(0..items)?))?;
            return Ok((Gradients::of(&loss, parameters)?, read(numbers, 1.0)?));
        }
        let mut outputs: Vec<Result<Vec<Tensor>>> = parts.iter().map(|_| Ok(Vec::new())).collect();
        self.each(parts.len(), |part| recording(|| forward(parts[part].clone())), |part, found| outputs[part] = found);
        let outputs = outputs.into_iter().collect::<Result<Vec<_>>>()?;
        // The graph ends at the outputs and goes on behind them.
        let whole = |i: usize| {
            let parts: Vec<Tensor> = outputs.iter().map(|part| part[i].detach()).collect();
            Ok(Var::from_tensor(&Tensor::cat(&parts, 0)?)?.into_inner())
        };
        let wholes = (0..outputs[0].len()).map(whole).collect::<Result<Vec<_>>>()?;
        let (loss, numbers) = recording(|| join(&wholes))?;
        let mut store = backward(&loss)?;
        let slopes: Vec<Option<Tensor>> = wholes.iter().map(|whole| store.remove(whole)).collect();
        let numbers = read(numbers, 1.0)?;
        let mut sum = Sum { total: Ok((Gradients::from_store(store, parameters.iter().copied()), numbers)), ..Sum::default() };
        let part = |part: usize| {
            let range = &parts[part];
            let starts = outputs[part].iter().zip(&slopes).filter_map(|(output, slope)| Some((output, slope.as_ref()?)));
            let starts = starts.map(|(output, slope)| Ok((output, slope.narrow(0, range.start, range.len())?)));
            let store = backward_from(&starts.collect::<Result<Vec<_>>>()?)?;
            Ok((Gradients::from_store(store, parameters.iter().copied()), Metrics::new()))
        };
        self.each(parts.len(), part, |number, part| sum.add(number, part));
        sum.total
    }

    /// Calls `work` with 0…`count` on the workers, and `done` with each result as it comes.
    fn each<T: Send>(&self, count: usize, work: impl Fn(usize) -> T + Sync, done: impl FnMut(usize, T) + Send) {
        let (next, done) = (AtomicUsize::new(0), Mutex::new(done));
        let turns = || {
            while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < count) {
                let result = work(number);
                done.lock().unwrap_or_else(PoisonError::into_inner)(number, result);
            }
        };
        if self.workers.is_empty() {
            return turns();
        }
        std::thread::scope(|scope| {
            for worker in &self.workers {
                scope.spawn(|| worker.install(turns));
            }
        });
    }
}

/// Scalars by name.
pub type Numbers = Vec<(String, Tensor)>;

/// The numbers times `share`.
fn read(numbers: Numbers, share: f64) -> Result<Metrics> {
    numbers.into_iter().map(|(name, number)| Ok((name, f64::from(number.to_scalar::<f32>()?) * share))).collect()
}

/// The micro-batches of a batch: as few as can be, and as equal.
fn parts(items: usize, most: usize) -> Vec<Range<usize>> {
    let count = if device::current().is_cpu() { items.div_ceil(most).max(1) } else { 1 };
    (0..count).map(|part| part * items / count..(part + 1) * items / count).collect()
}

type Part = Result<(Gradients, Metrics)>;

/// Adds in the order of micro-batches, whichever is ready first, so that few wait.
struct Sum {
    waiting: BTreeMap<usize, Part>,
    added: usize,
    total: Part,
}

impl Default for Sum {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), added: 0, total: Ok(Default::default()) }
    }
}

impl Sum {
    fn add(&mut self, number: usize, part: Part) {
        self.waiting.insert(number, part);
        while let Some(part) = self.waiting.remove(&self.added) {
            self.added += 1;
            if let Ok((gradients, numbers)) = &mut self.total {
                let more = part.and_then(|(more, values)| {
                    values.into_iter().for_each(|(name, value)| *numbers.entry(name).or_default() += value);
                    Ok(gradients.accumulate(more)?)
                });
                self.total = more.map(|()| (std::mem::take(gradients), std::mem::take(numbers)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;
    use candle_core::Device;
    use rayon::ThreadPoolBuilder;

    /// Gradients of `w` and the numbers, by a pool of so many threads; from item `fail_from` on there is an error.
    type Found = Result<(Vec<f32>, Metrics)>;

    /// Mean of (w·x)² over rows; `joined`: of what all rows together give.
    fn run(threads: usize, items: usize, fail_from: usize, joined: bool) -> Found {
        let w = Var::new(&[[0.5f32], [-0.25], [2.0]], &Device::Cpu).unwrap();
        let unused = Var::new(&[5f32], &Device::Cpu).unwrap();
        let values: Vec<f32> = (0..items * 3).map(|i| (i as f32 * 0.7).sin()).collect();
        let rows = Tensor::from_vec(values, (items, 3), &Device::Cpu).unwrap();
        let outputs = |range: Range<usize>| {
            if range.end > fail_from {
                return Err(Error::Usage(format!("items {range:?}")));
            }
            Ok(vec![
                rows.narrow(0, range.start, range.len())?.matmul(&w)?,
                Tensor::zeros(range.len(), rows.dtype(), rows.device())?,
            ])
        };
        let loss = |outputs: &[Tensor]| {
            let loss = outputs[0].sqr()?.mean_all()?;
            Ok((loss.clone(), vec![("loss".to_string(), loss)]))
        };
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (gradients, numbers) = pool.install(|| {
            let parameters = [("unused", &unused), ("w", &w)];
            let batches = MicroBatches::new(items, 8, parameters)?;
            match joined {
                true => batches.joined(items, parameters, outputs, loss),
                false => batches.gradients(items, parameters, |range| loss(&outputs(range)?)),
            }
        })?;
        assert_eq!(gradients.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["w"]);
        Ok((gradients.get("w").unwrap().flatten_all().unwrap().to_vec1().unwrap(), numbers))
    }

    #[test]
    fn micro_batches_give_the_gradient_of_the_whole_and_the_same_bits_with_any_threads() {
        for (items, joined) in [1, 8, 9, 21, 32].into_iter().flat_map(|items| [(items, false), (items, true)]) {
            let (alone, numbers) = run(1, items, items, joined).unwrap();
            let rows = |column: usize, row: usize| f64::from(((row * 3 + column) as f32 * 0.7).sin());
            let product = |row: usize| 0.5 * rows(0, row) - 0.25 * rows(1, row) + 2.0 * rows(2, row);
            for (column, found) in alone.iter().enumerate() {
                let exact = (0..items).map(|row| 2.0 * product(row) * rows(column, row)).sum::<f64>() / items as f64;
                assert!((f64::from(*found) - exact).abs() < 1e-5, "{items} items: {found} {exact}");
            }
            let exact = (0..items).map(|row| product(row).powi(2)).sum::<f64>() / items as f64;
            assert!((numbers["loss"] - exact).abs() < 1e-5, "{items} items: {numbers:?} {exact}");
            for threads in [2, 3, 5] {
                assert_eq!(run(threads, items, items, joined).unwrap(), (alone.clone(), numbers.clone()));
            }
        }
    }

    #[test]
    fn parameters_behind_the_outputs_have_gradients_too() {
        let w = Var::new(&[[0.5f32], [-0.25]], &Device::Cpu).unwrap();
        let scale = Var::new(3f32, &Device::Cpu).unwrap();
        let rows = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 7.0]], &Device::Cpu).unwrap();
        let forward = |range: Range<usize>| Ok(vec![rows.narrow(0, range.start, range.len())?.matmul(&w)?]);
        let join = |outputs: &[Tensor]| Ok((outputs[0].broadcast_mul(&scale)?.sum_all()?, Vec::new()));
        let parameters = [("scale", &scale), ("w", &w)];
        let (found, _) = MicroBatches::new(3, 1, parameters).unwrap().joined(3, parameters, forward, join).unwrap();
        assert_eq!(found.get("w").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), [27.0, 39.0]);
        assert_eq!(found.get("scale").unwrap().to_scalar::<f32>().unwrap(), 0.0 + 0.5 + 0.75);
    }

    #[test]
    fn the_first_failure_is_told() {
        for (threads, joined) in [(1, false), (3, false), (1, true), (3, true)] {
            assert_eq!(run(threads, 30, 10, joined).unwrap_err().to_string(), "items 7..15");
        }
    }

    #[test]
    fn parts_cover_the_batch_and_are_nearly_equal() {
        assert_eq!(parts(21, 8), [0..7, 7..14, 14..21]);
        assert_eq!(parts(8, 8).len(), 1);
        assert_eq!(parts(9, 8), [0..4, 4..9]);
        assert_eq!(parts(3, 1), [0..1, 1..2, 2..3]);
    }
}
