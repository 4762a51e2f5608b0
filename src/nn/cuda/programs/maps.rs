//! Operations on maps: depthwise convolution, resizing, pooling.

use super::super::machine::{Kernels, Machine, Source, args};
use crate::nn::conv::Sizes;
use candle_core::Result;
use std::ops::Range;

/// A resize of `planes` maps.
#[derive(Debug, Clone, Copy)]
pub struct ResizeSizes {
    pub planes: usize,
    /// Rows and columns of a map.
    pub size: (usize, usize),
    /// Rows and columns of a result.
    pub out: (usize, usize),
    /// 0 nearest, 1 bilinear, 2 bilinear with aligned corners.
    pub mode: usize,
}

impl ResizeSizes {
    /// Distance in the input between neighbours of the output.
    fn scale(&self, from: usize, to: usize) -> f32 {
        match (self.mode, to) {
            (2, 0 | 1) => 0.0,
            (2, _) => from.saturating_sub(1) as f32 / (to - 1) as f32,
            _ => from as f32 / to as f32,
        }
    }
}

/// A max pooling of `planes` maps.
#[derive(Debug, Clone, Copy)]
pub struct PoolSizes {
    pub planes: usize,
    /// Rows and columns of a map.
    pub size: (usize, usize),
    /// Rows and columns of a result.
    pub out: (usize, usize),
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl<M: Machine> Kernels<'_, M> {
    /// `bias` (channels out) is f32; zeros for none.
    pub fn depthwise(&self, xs: &M::Buffer, weight: &M::Buffer, bias: &M::Buffer, s: &Sizes) -> Result<M::Buffer> {
        let count = s.batch * s.out_channels * s.out_plane();
        let out = self.values(count)?;
        let multiplier = s.out_channels / s.in_channels;
        let args = args![
            xs,
            weight,
            bias,
            &out,
            count,
            s.in_channels,
            multiplier,
            s.height,
            s.width,
            s.kernel_height,
            s.kernel_width,
            s.out_height,
            s.out_width,
            s.spec.stride,
            s.spec.padding,
            s.spec.dilation
        ];
        self.threads(Source::Depthwise, "depthwise", count, args)?;
        Ok(out)
    }

    /// Gradient of [`Self::depthwise`] for the inputs.
    pub fn depthwise_input_gradient(&self, weight: &M::Buffer, gradient: &M::Buffer, s: &Sizes) -> Result<M::Buffer> {
        let count = s.batch * s.in_channels * s.in_plane();
        let out = self.values(count)?;
        let multiplier = s.out_channels / s.in_channels;
        let args = args![
            weight,
            gradient,
            &out,
            count,
            s.in_channels,
            multiplier,
            s.height,
            s.width,
            s.kernel_height,
            s.kernel_width,
            s.out_height,
            s.out_width,
            s.spec.stride,
            s.spec.padding,
            s.spec.dilation
        ];
        self.threads(Source::Depthwise, "depthwise_input_gradient", count, args)?;
        Ok(out)
    }

    /// Gradient of [`Self::depthwise`] for the weight.
    pub fn depthwise_weight_gradient(&self, xs: &M::Buffer, gradient: &M::Buffer, s: &Sizes) -> Result<M::Buffer> {
        let count = s.out_channels * s.area();
        let out = self.values(count)?;
        let multiplier = s.out_channels / s.in_channels;
        let args = args![
            xs,
            gradient,
            &out,
            s.batch,
            s.in_channels,
            multiplier,
            s.height,
            s.width,
            s.kernel_height,
            s.kernel_width,
            s.out_height,
            s.out_width,
            s.spec.stride,
            s.spec.padding,
            s.spec.dilation
        ];
        self.blocks(Source::Depthwise, "depthwise_weight_gradient", [count, 1], args)?;
        Ok(out)
    }

    /// Bilinear or nearest.
    pub fn resize(&self, xs: &M::Buffer, s: ResizeSizes) -> Result<M::Buffer> {
        self.resize_rows(xs, s, 0..s.out.0)
    }

    /// Some rows of what [`Self::resize`] gives.
    pub fn resize_rows(&self, xs: &M::Buffer, s: ResizeSizes, rows: Range<usize>) -> Result<M::Buffer> {
        let ((height, width), (out_height, out_width)) = (s.size, s.out);
        let count = s.planes * rows.len() * out_width;
        let out = self.values(count)?;
        let (down, along) = (s.scale(height, out_height), s.scale(width, out_width));
        let args = args![xs, &out, count, height, width, rows.start, rows.len(), out_width, down, along, s.mode];
        self.threads(Source::Resize, "resize", count, args)?;
        Ok(out)
    }

    /// Gradient of [`Self::resize`].
    pub fn resize_gradient(&self, gradient: &M::Buffer, s: ResizeSizes) -> Result<M::Buffer> {
        let ((height, width), (out_height, out_width)) = (s.size, s.out);
        let narrow = s.planes * out_height * width;
        let between = self.floats(narrow)?;
        let args = args![gradient, &between, narrow, width, out_width, s.scale(width, out_width), s.mode];
        self.threads(Source::Resize, "resize_gradient_columns", narrow, args)?;
        let count = s.planes * height * width;
        let out = self.values(count)?;
        let args = args![&between, &out, count, width, height, out_height, s.scale(height, out_height), s.mode];
        self.threads(Source::Resize, "resize_gradient_rows", count, args)?;
        Ok(out)
    }

    /// Largest value of every window.
    pub fn max_pool(&self, xs: &M::Buffer, s: PoolSizes) -> Result<M::Buffer> {
        let ((height, width), (out_height, out_width)) = (s.size, s.out);
        let count = s.planes * out_height * out_width;
        let out = self.values(count)?;
        let args = args![xs, &out, count, height, width, out_height, out_width, s.kernel, s.stride, s.padding];
        self.threads(Source::Pool, "max_pool", count, args)?;
        Ok(out)
    }

    /// Gradient of [`Self::max_pool`].
    pub fn max_pool_gradient(&self, xs: &M::Buffer, gradient: &M::Buffer, s: PoolSizes) -> Result<M::Buffer> {
        let ((height, width), (out_height, out_width)) = (s.size, s.out);
        let count = s.planes * height * width;
        let out = self.values(count)?;
        let args = args![xs, gradient, &out, count, height, width, out_height, out_width, s.kernel, s.stride, s.padding];
        self.threads(Source::Pool, "max_pool_gradient", count, args)?;
        Ok(out)
    }
}
