//! From a picture to logits: at once, or by overlapping windows.

use crate::nn::resize_bilinear;
use candle_core::{Result, Tensor};

/// How a picture is given to the network. Sizes are (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inference {
    /// The whole picture.
    Whole,
    /// Windows of `window` every `stride` pixels; logits are averaged where they overlap.
    Slide {
        /// Size of a window; smaller pictures are used whole.
        window: (usize, usize),
        /// Steps from one to the next.
        stride: (usize, usize),
    },
}

impl Inference {
    /// Logits at the size of `images`; `model` may return them at any stride.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W) → (B, C, H, W)
    ///
    /// # Source
    /// DAFormer (whole); HRDA and MIC (slide, window 1024², stride 512).
    pub fn logits(&self, images: &Tensor, model: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let predict = |part: &Tensor| -> Result<Tensor> {
            let (_, _, height, width) = part.dims4()?;
            resize_bilinear(&model(part)?.detach(), (height, width), false)
        };
        match *self {
            Self::Whole => predict(images),
            Self::Slide { window, stride } => slide(images, window, stride, &predict),
        }
    }
}

fn slide(
    images: &Tensor,
    window: (usize, usize),
    stride: (usize, usize),
    predict: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, _, height, width) = images.dims4()?;
    let (rows, columns) = (slide_windows(height, window.0, stride.0), slide_windows(width, window.1, stride.1));
    let mut bands = Vec::new();
    // Windows of one row share their rows, so that sums grow by width first and only then by height.
    for &(top, bottom) in &rows {
        let band = images.narrow(2, top, bottom - top)?;
        let part = |&(left, right): &(usize, usize)| predict(&band.narrow(3, left, right - left)?.contiguous()?);
        let parts = columns.iter().map(part).collect::<Result<Vec<_>>>()?;
        bands.push(sum_placed(&parts, &columns, width, 3)?);
    }
    let sum = sum_placed(&bands, &rows, height, 2)?;
    let counts = |windows: &[(usize, usize)], length: usize| -> Vec<f32> {
        (0..length).map(|at| windows.iter().filter(|(start, end)| (*start..*end).contains(&at)).count() as f32).collect()
    };
    let rows = Tensor::from_vec(counts(&rows, height), (1, 1, height, 1), images.device())?;
    let columns = Tensor::from_vec(counts(&columns, width), (1, 1, 1, width), images.device())?;
    sum.broadcast_div(&rows.broadcast_mul(&columns)?.to_dtype(sum.dtype())?)
}

/// Sum of tensors that lie at the given places of a dimension of `length`.
fn sum_placed(parts: &[Tensor], places: &[(usize, usize)], length: usize, dim: usize) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (part, &(start, end)) in parts.iter().zip(places) {
        let placed = part.pad_with_zeros(dim, start, length - end)?;
        sum = Some(match sum {
            Some(sum) => (sum + placed)?,
            None => placed,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("no window".into()))
}

/// Start and end of the windows along one axis: `⌊max(length − window + stride − 1, 0) / stride⌋ + 1` of them, the last
/// one moved back to end with the picture.
pub fn slide_windows(length: usize, window: usize, stride: usize) -> Vec<(usize, usize)> {
    let (window, stride) = (window.max(1), stride.max(1));
    let count = (length + stride - 1).saturating_sub(window) / stride + 1;
    let place = |k: usize| {
        let end = (k * stride + window).min(length);
        (end.saturating_sub(window), end)
    };
    (0..count).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn windows_cover_the_picture_like_the_reference() {
        let starts = |l, w, s| slide_windows(l, w, s).iter().map(|w| w.0).collect::<Vec<_>>();
        assert_eq!(starts(1080, 1024, 512), [0, 56]);
        assert_eq!(starts(1920, 1024, 512), [0, 512, 896]);
        assert_eq!(starts(2048, 1024, 512), [0, 512, 1024]);
        assert_eq!(slide_windows(1024, 512, 256), [(0, 512), (256, 768), (512, 1024)]);
        assert_eq!(slide_windows(300, 512, 256), [(0, 300)]);
    }

    #[test]
    fn overlapping_logits_are_averaged() {
        // The "network" returns the mean of its window, so every pixel gets the mean over the windows that hold it.
        let xs = Tensor::new(&[0f32, 1., 2., 3., 4.], &Device::Cpu).unwrap().reshape((1, 1, 1, 5)).unwrap();
        let model = |part: &Tensor| part.mean_all()?.broadcast_as(part.shape());
        let slide = Inference::Slide { window: (1, 3), stride: (1, 2) };
        let ys: Vec<f32> = slide.logits(&xs, &model).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(ys, [1., 1., 2., 3., 3.]);
    }

    #[test]
    fn sliding_with_a_pointwise_network_equals_the_whole_picture() {
        let xs = Tensor::arange(0f32, 2. * 3. * 7. * 9., &Device::Cpu).unwrap().reshape((2, 3, 7, 9)).unwrap();
        let model = |part: &Tensor| part.affine(2.0, 1.0);
        let whole = Inference::Whole.logits(&xs, &model).unwrap();
        let slide = Inference::Slide { window: (4, 5), stride: (2, 3) }.logits(&xs, &model).unwrap();
        let difference = (whole - slide).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-4, "{difference}");
    }
}
