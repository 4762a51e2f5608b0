//! Every operation on a device against the same formula written out with candle's primitives in f64 on the processor:
//! outputs and gradients.

mod cases;
mod reference;

use super::{backward_from, recording};
use crate::base::{Result, Rng};
use candle_core::{DType, Device, Result as TensorResult, Tensor, Var};
use cases::{Case, Op, cases};
use std::time::Instant;

/// What the test found about one operation in one number type.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The operation.
    pub op: &'static str,
    /// The number type of its inputs: `f32` or `bf16`.
    pub dtype: &'static str,
    /// Largest error of output and gradients at all sizes, each relative to the largest reference value. NaN is wrong, too.
    pub error: f64,
    /// What [`Row::error`] may be.
    pub tolerance: f64,
    /// Forward and backward of the largest size, in milliseconds: the best of a few runs.
    pub milliseconds: f64,
}

impl Row {
    /// True when the error is within the tolerance.
    pub fn ok(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Results of a bf16 operation have 8 bits, and so have the gradients on their way.
const BF16_TOLERANCE: f64 = 2e-2;

/// Runs every operation forward and backward on `device`, at two sizes each: in f32, and on a GPU in bf16 too.
///
/// # Errors
/// An operation that cannot run on the device at all.
pub fn run(device: &Device) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in cases() {
        rows.push(row(&case, DType::F32, device)?);
        if device.is_cuda() && case.in_bf16 > 0 {
            rows.push(row(&case, DType::BF16, device)?);
        }
    }
    Ok(rows)
}

fn row(case: &Case, dtype: DType, device: &Device) -> Result<Row> {
    let (mut error, mut milliseconds) = (0f64, 0.0);
    for shapes in case.sizes {
        let arguments = arguments(case, shapes, dtype)?;
        let wide = arguments.iter().map(|t| t.to_dtype(DType::F64)).collect::<TensorResult<Vec<_>>>()?;
        let near = arguments.iter().map(|t| t.to_device(device)).collect::<TensorResult<Vec<_>>>()?;
        let trial = Trial::new(case, case.op, &near)?;
        let expected = Trial::new(case, case.reference, &wide)?.run()?;
        for (found, expected) in trial.run()?.iter().zip(&expected) {
            let here = relative_error(found, expected)?;
            error = if here.is_nan() { here } else { error.max(here) };
        }
        milliseconds = trial.best_time()?;
    }
    let (dtype, tolerance) = match dtype {
        DType::BF16 => ("bf16", BF16_TOLERANCE.max(case.tolerance)),
        _ => ("f32", case.tolerance),
    };
    Ok(Row { op: case.name, dtype, error, tolerance, milliseconds })
}

/// Random arguments on the processor; those that take part in bf16 are rounded to it.
fn arguments(case: &Case, shapes: &[&[usize]], dtype: DType) -> Result<Vec<Tensor>> {
    let mut rng = Rng::stream(0, case.name, &[]);
    let mut draw = |(i, shape): (usize, &&[usize])| -> TensorResult<Tensor> {
        let values = rng.normal_tensor(shape, &Device::Cpu)?;
        values.to_dtype(if i < case.in_bf16 { dtype } else { DType::F32 })
    };
    Ok(shapes.iter().enumerate().map(&mut draw).collect::<TensorResult<_>>()?)
}

/// An operation with arguments that get gradients, and the gradient of its output.
struct Trial {
    op: Op,
    vars: Vec<Var>,
    gradient: Tensor,
}

impl Trial {
    fn new(case: &Case, op: Op, arguments: &[Tensor]) -> Result<Self> {
        let out = op(arguments)?;
        // Values that bf16 can hold, so that they are the same for all types.
        let gradient = Rng::stream(1, case.name, &[]).normal_tensor(out.dims(), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let gradient = gradient.to_device(out.device())?.to_dtype(out.dtype())?;
        let vars = arguments.iter().map(Var::from_tensor).collect::<TensorResult<_>>()?;
        Ok(Self { op, vars, gradient })
    }

    /// The output, and the gradients of all arguments.
    fn run(&self) -> Result<Vec<Tensor>> {
        let tensors: Vec<Tensor> = self.vars.iter().map(|var| var.as_tensor().clone()).collect();
        let out = recording(|| (self.op)(&tensors))?;
        let store = match out.dtype() {
            // Our own operations have no f64.
            DType::F64 => (&out * &self.gradient)?.sum_all()?.backward()?,
            _ => backward_from(&[(&out, self.gradient.clone())])?,
        };
        let mut all = vec![out.detach()];
        for var in &self.vars {
            all.push(store.get(var).cloned().map_or_else(|| var.as_tensor().zeros_like(), Ok)?);
        }
        Ok(all)
    }

    /// Milliseconds of forward and backward: the best of a few runs.
    fn best_time(&self) -> Result<f64> {
        let (device, mut best) = (self.gradient.device(), f64::INFINITY);
        for _ in 0..3 {
            device.synchronize()?;
            let start = Instant::now();
            self.run()?;
            device.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(best)
    }
}

/// Largest difference over largest reference value.
fn relative_error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let found = found.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let expected = expected.flatten_all()?.to_vec1::<f64>()?;
    if found.len() != expected.len() {
        return Ok(f64::INFINITY);
    }
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0f64, |worst, d| if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d) });
    Ok(worst / largest.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_agrees_with_its_formula_on_the_processor() {
        let rows = run(&Device::Cpu).unwrap();
        for row in &rows {
            println!("{:24} {} {:.1e} of {:.0e}, {:.2} ms", row.op, row.dtype, row.error, row.tolerance, row.milliseconds);
        }
        let wrong: Vec<_> = rows.iter().filter(|row| !row.ok()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn what_is_not_a_number_is_wrong() {
        let error = |found: f32| {
            let t = |x: f32| Tensor::new(&[1f32, x, 2.0], &Device::Cpu).unwrap();
            relative_error(&t(found), &t(0.5).to_dtype(DType::F64).unwrap()).unwrap()
        };
        assert_eq!(error(1.5), 0.5);
        let row = Row { op: "", dtype: "f32", error: error(f32::NAN), tolerance: 1.0, milliseconds: 0.0 };
        assert!(!row.ok());
    }
}
