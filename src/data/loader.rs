//! Items prepared ahead on threads, handed out in order.

use super::transforms::Item;
use crate::base::{Error, Result};
use candle_core::Tensor;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

type Make<T> = dyn Fn(u64) -> Result<T> + Send + Sync;

/// Iterator over `make(index)` for a range of indices, in order. An item depends on its index alone, so results do not
/// depend on the number of threads, and a run resumes by starting at a later index. After an error it goes on.
pub struct Loader<T> {
    indices: Range<u64>,
    make: Arc<Make<T>>,
    /// Worker `k` prepares every n-th index; reading them in turn restores the order.
    workers: VecDeque<Worker<T>>,
}

struct Worker<T> {
    items: Receiver<Result<T>>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts `workers` threads that stay up to about `depth` items ahead; with 0 workers items are made when asked for.
    ///
    /// # Errors
    /// [`Error::Environment`] if the system refuses a thread.
    pub fn new(
        indices: Range<u64>,
        workers: usize,
        depth: usize,
        make: impl Fn(u64) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut loader = Self { indices: indices.clone(), make: Arc::new(make), workers: VecDeque::new() };
        for worker in 0..workers {
            let (sender, items) = sync_channel((depth / workers).max(1));
            let make = Arc::clone(&loader.make);
            let own = indices.clone().skip(worker).step_by(workers);
            let work = move || {
                for index in own {
                    // The receiver is gone when the loader was dropped.
                    if sender.send(make(index)).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("loader-{worker}")).spawn(work);
            let refused = |e| Error::environment(format!("can't start a loader thread: {e}"), "use fewer with `--threads`");
            loader.workers.push_back(Worker { items, thread: thread.map_err(refused)? });
        }
        Ok(loader)
    }
}

impl<T> Iterator for Loader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let index = self.indices.next()?;
        let Some(worker) = self.workers.front() else { return Some((self.make)(index)) };
        let item = worker.items.recv();
        self.workers.rotate_left(1);
        // A worker only ends early by a panic, whose message is already printed.
        Some(item.unwrap_or_else(|_| {
            Err(Error::environment(format!("a loader thread failed at item {index}"), "report this as a bug"))
        }))
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        for worker in self.workers.drain(..) {
            drop(worker.items);
            let _ = worker.thread.join();
        }
    }
}

/// Items of one size, stacked.
#[derive(Debug, Clone)]
pub struct Batch {
    /// (B, 3, H, W) f32, normalised.
    pub images: Tensor,
    /// (B, H, W) u32 train ids; none if any item has no label.
    pub labels: Option<Tensor>,
}

impl Batch {
    /// # Errors
    /// [`Error::Tensor`] without items or for items of different sizes.
    pub fn stack(items: &[Item]) -> Result<Self> {
        let images: Vec<&Tensor> = items.iter().map(|item| &item.image).collect();
        let labels: Option<Vec<&Tensor>> = items.iter().map(|item| item.label.as_ref()).collect();
        Ok(Self { images: Tensor::stack(&images, 0)?, labels: labels.map(|l| Tensor::stack(&l, 0)).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn order_does_not_depend_on_the_number_of_threads() {
        let make = |index: u64| {
            std::thread::sleep(std::time::Duration::from_micros(index * 7919 % 300));
            if index == 13 { Err(Error::Usage("13".into())) } else { Ok(index) }
        };
        for workers in [0, 1, 2, 5] {
            let items: Vec<_> = Loader::new(7..40, workers, 4, make).unwrap().map(|item| item.ok()).collect();
            let expected: Vec<_> = (7..40).map(|index| (index != 13).then_some(index)).collect();
            assert_eq!(items, expected, "{workers} workers");
        }
    }

    #[test]
    fn dropping_stops_an_endless_loader_that_is_never_far_ahead() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&made);
        let mut loader = Loader::new(0..u64::MAX, 2, 4, move |index| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(index)
        })
        .unwrap();
        assert_eq!(loader.next().unwrap().unwrap(), 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(loader);
        let total = made.load(Ordering::SeqCst);
        assert!(total <= 1 + 4 + 2, "{total} items made");
    }

    #[test]
    fn a_panic_in_a_worker_becomes_an_error() {
        let mut loader =
            Loader::new(0..2, 1, 1, |index| if index == 0 { Ok(0) } else { panic!("expected by the test") }).unwrap();
        assert!(loader.next().unwrap().is_ok());
        assert!(loader.next().unwrap().unwrap_err().to_string().contains("item 1"));
        assert!(loader.next().is_none());
    }
}
