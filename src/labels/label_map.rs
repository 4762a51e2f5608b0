//! The label map.

use crate::base::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// The train id of pixels that count in no loss and no score (`ignore_index`).
pub const IGNORE: u8 = 255;

/// Train ids of one picture, row-major (H, W).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height · width` train ids, [`IGNORE`] where there is none.
    pub ids: Vec<u8>,
}

impl LabelMap {
    /// A map of one id everywhere.
    pub fn filled(height: usize, width: usize, id: u8) -> Self {
        Self { height, width, ids: vec![id; height * width] }
    }

    /// The class with the largest logit of every pixel; of equal ones the first.
    ///
    /// # Shapes
    /// `logits` (C, H, W) or (1, C, H, W)
    ///
    /// # Errors
    /// Shapes other than these, or more than 255 classes.
    pub fn from_logits(logits: &Tensor) -> Result<Self> {
        let logits = if logits.rank() == 4 { logits.squeeze(0)? } else { logits.clone() };
        let (classes, height, width) = logits.dims3()?;
        if classes > usize::from(IGNORE) {
            return Err(Error::Usage(format!("label maps hold at most 255 classes, the logits have {classes}")));
        }
        let ids = logits.argmax(0)?.to_dtype(DType::U8)?;
        Ok(Self { height, width, ids: ids.flatten_all()?.to_vec1()? })
    }

    /// Tensor (H, W) of u32, the type that losses index with.
    pub fn to_tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        let ids: Vec<u32> = self.ids.iter().map(|&id| u32::from(id)).collect();
        Tensor::from_vec(ids, (self.height, self.width), device)
    }

    /// The id that most pixels of every cell of a grid have, of equal ones the smallest; [`IGNORE`] where there is no other.
    ///
    /// # Errors
    /// A grid with more rows or columns than the map.
    pub fn majority(&self, (rows, columns): (usize, usize)) -> Result<Self> {
        if rows > self.height || columns > self.width || rows * columns == 0 {
            return Err(Error::Usage(format!("a label map of {}x{} has no {rows}x{columns} cells", self.height, self.width)));
        }
        let cell = |index: usize, cells: usize, size: usize| index * size / cells..(index + 1) * size / cells;
        let most = |i: usize| {
            let mut counts = [0u32; 256];
            for y in cell(i / columns, rows, self.height) {
                for &id in &self.ids[y * self.width..][cell(i % columns, columns, self.width)] {
                    counts[usize::from(id)] += 1;
                }
            }
            let ids = (0..IGNORE).filter(|&id| counts[usize::from(id)] > 0);
            ids.rev().max_by_key(|&id| counts[usize::from(id)]).unwrap_or(IGNORE)
        };
        Ok(Self { height: rows, width: columns, ids: (0..rows * columns).map(most).collect() })
    }

    /// Pixels per id; index 255 counts the ignored ones.
    pub fn histogram(&self) -> [u64; 256] {
        let mut counts = [0; 256];
        for &id in &self.ids {
            counts[usize::from(id)] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equal_logits() {
        let logits = Tensor::new(&[[[0f32, 2., 1.]], [[1., 2., 0.]], [[-1., 2., 1.]]], &Device::Cpu).unwrap();
        let map = LabelMap::from_logits(&logits).unwrap();
        assert_eq!((map.height, map.width, map.ids), (1, 3, vec![1, 0, 0]));
    }

    #[test]
    fn cells_get_the_id_of_most_of_their_pixels() {
        let rows = [[1, 1, 0, 255, 4], [1, 2, 0, 255, 4], [3, 3, 255, 255, 4], [5, 5, 255, 255, 4], [7, 7, 255, 255, 9]];
        let map = LabelMap { height: 5, width: 5, ids: rows.concat() };
        // Rows 0–1 and 2–4, columns 0–1 and 2–4. Of equal counts the smallest; 255 only where nothing else is.
        assert_eq!(map.majority((2, 2)).unwrap().ids, [1, 0, 3, 4]);
        assert_eq!(map.majority((5, 5)).unwrap().ids, map.ids);
        assert_eq!(LabelMap::filled(2, 2, IGNORE).majority((1, 1)).unwrap().ids, [IGNORE]);
        assert!(map.majority((6, 5)).is_err() && map.majority((0, 1)).is_err());
    }

    #[test]
    fn histogram_counts_every_pixel() {
        let map = LabelMap { height: 1, width: 4, ids: vec![0, 2, 2, IGNORE] };
        let counts = map.histogram();
        assert_eq!((counts[0], counts[1], counts[2], counts[255]), (1, 0, 2, 1));
    }
}
