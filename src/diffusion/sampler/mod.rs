//! Samplers: from noise to latents in a few network evaluations, with the numbers of diffusers' schedulers.
//!
//! A [`Sampler`] is a state machine for one batch: for every index of [`Sampler::timesteps`], give
//! [`Sampler::scale_input`] to the network and its answer to [`Sampler::step`]. No randomness in here: the start and
//! DDPM's noise are passed in.

mod spacing;

use super::noise_schedule::{NoiseConfig, NoiseSchedule, PredictionType, VarianceType};
use crate::base::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// Which method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// Pseudo linear multistep (PLMS): DATUM's default.
    #[default]
    Pndm,
    /// Deterministic DDIM (η = 0).
    Ddim,
    /// Ancestral sampling; needs noise at every step but the last.
    Ddpm,
    /// Euler's method on the probability-flow equation.
    Euler,
    /// DPM-Solver++ of second order, multistep.
    #[serde(rename = "dpmpp-2m")]
    DpmSolver2M,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pndm, Self::Ddim, Self::Ddpm, Self::Euler, Self::DpmSolver2M];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pndm => "pndm",
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Euler => "euler",
            Self::DpmSolver2M => "dpmpp-2m",
        }
    }

    /// The name that other tools write into pictures.
    pub fn display_name(self) -> &'static str {
        match self {
            Self::Pndm => "PLMS",
            Self::Ddim => "DDIM",
            Self::Ddpm => "DDPM",
            Self::Euler => "Euler",
            Self::DpmSolver2M => "DPM++ 2M",
        }
    }

    /// The method of a diffusers scheduler class, e.g. `PNDMScheduler`.
    pub fn of_class(class: &str) -> Option<Self> {
        Some(match class {
            "PNDMScheduler" => Self::Pndm,
            "DDIMScheduler" => Self::Ddim,
            "DDPMScheduler" => Self::Ddpm,
            "EulerDiscreteScheduler" => Self::Euler,
            "DPMSolverMultistepScheduler" => Self::DpmSolver2M,
            _ => return None,
        })
    }
}

impl std::str::FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            Error::Usage(format!("expected a scheduler ({}), found `{name}`", names.join(", ")))
        })
    }
}

/// One sampling run of one batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    kind: SamplerKind,
    schedule: NoiseSchedule,
    /// Number n of steps asked for; PNDM evaluates the network n + 1 times.
    steps: usize,
    timesteps: Vec<f64>,
    /// √((1−ᾱ)/ᾱ) of every timestep, then 0.
    sigmas: Vec<f64>,
    next: usize,
    /// Earlier network outputs (PNDM: up to four) or clean latents (DPM++: one), newest last.
    history: Vec<Tensor>,
    /// PNDM: latents of the first call, taken up again by the second.
    first_latents: Option<Tensor>,
}

impl Sampler {
    /// A sampler of `steps` steps.
    ///
    /// # Errors
    /// No steps, more steps than the schedule has timesteps, or settings the method cannot follow.
    pub fn new(kind: SamplerKind, config: &NoiseConfig, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::new(config)?;
        let total = schedule.num_train_timesteps();
        if steps == 0 || steps > total {
            return Err(Error::Usage(format!("expected 1 to {total} sampling steps, found {steps}")));
        }
        if kind == SamplerKind::Pndm && !config.skip_prk_steps {
            return Err(Error::Usage("scheduler config: pndm needs `skip_prk_steps: true`".into()));
        }
        if kind == SamplerKind::Pndm && config.prediction_type == PredictionType::Sample {
            return Err(Error::Usage("pndm cannot use a network that predicts clean latents; choose ddim".into()));
        }
        let timesteps = spacing::timesteps(kind, config, total, steps);
        if let Some(t) = timesteps.iter().find(|t| **t < 0.0 || **t > (total - 1) as f64) {
            let next = "use fewer steps or another `timestep_spacing`";
            return Err(Error::Usage(format!("{steps} steps reach timestep {t}, but the last one is {}; {next}", total - 1)));
        }
        let all_sigmas: Vec<f64> = schedule.alphas_cumprod().iter().map(|ac| ((1.0 - ac) / ac).sqrt()).collect();
        let sigmas = timesteps.iter().map(|t| spacing::interpolate(&all_sigmas, *t)).chain([0.0]).collect();
        Ok(Self { kind, schedule, steps, timesteps, sigmas, next: 0, history: Vec::new(), first_latents: None })
    }

    /// The timesteps of the network evaluations, in order. Euler's may have fractions.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Standard deviation that the starting noise has to have.
    pub fn init_noise_sigma(&self) -> f64 {
        match self.kind {
            SamplerKind::Euler => {
                let largest = self.sigmas[0];
                if spacing::of(self.kind, self.schedule.config()) == super::noise_schedule::TimestepSpacing::Leading {
                    largest.hypot(1.0)
                } else {
                    largest
                }
            }
            _ => 1.0,
        }
    }

    /// Leaves out the first `start` steps: for latents that are only partly noise.
    ///
    /// # Errors
    /// PNDM, whose first steps depend on each other, and a start past the end.
    pub fn skip(&mut self, start: usize) -> Result<()> {
        if start > 0 && self.kind == SamplerKind::Pndm {
            return Err(Error::Usage("pndm cannot start from a photo; choose `--scheduler ddim`".into()));
        }
        if start >= self.timesteps.len() {
            return Err(Error::Usage(format!("expected a start below {} steps, found {start}", self.timesteps.len())));
        }
        self.next = start;
        Ok(())
    }

    /// Where sampling begins at step `start` for a picture of `clean` latents: as much noise on them as the method expects there.
    ///
    /// # Shapes
    /// Both (B, C, h, w); `noise` standard normal
    pub fn noised(&self, clean: &Tensor, noise: &Tensor, start: usize) -> Result<Tensor> {
        match self.kind {
            SamplerKind::Euler => Ok((clean + (noise * self.sigmas[start])?)?),
            _ => Ok(self.schedule.add_noise(clean, noise, &vec![self.timesteps[start] as usize; clean.dim(0)?])?),
        }
    }

    /// Latents as the network wants them at `index`.
    pub fn scale_input(&self, latents: &Tensor, index: usize) -> TensorResult<Tensor> {
        match self.kind {
            SamplerKind::Euler => latents * (1.0 / self.sigmas[index].hypot(1.0)),
            _ => Ok(latents.clone()),
        }
    }

    /// True when the step at `index` adds noise, which the caller draws per image.
    pub fn needs_noise(&self, index: usize) -> bool {
        self.kind == SamplerKind::Ddpm && self.timesteps[index] > 0.0
    }

    /// The latents after the step at `index`.
    ///
    /// # Shapes
    /// All tensors (B, C, h, w); `noise` standard normal where [`Self::needs_noise`] says so, else ignored.
    ///
    /// # Errors
    /// Steps out of order, missing noise, tensors of different shapes.
    pub fn step(&mut self, model_output: &Tensor, index: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        if index != self.next || index >= self.timesteps.len() {
            return Err(Error::Usage(format!("sampling step {} comes next, found {index}", self.next)));
        }
        self.next += 1;
        // Sampling is never differentiated.
        let (output, latents) = (&model_output.detach(), &latents.detach());
        Ok(match self.kind {
            SamplerKind::Pndm => self.pndm(output, index, latents)?,
            SamplerKind::Ddim => self.ddim(output, index, latents)?,
            SamplerKind::Ddpm => {
                let noise = noise.filter(|_| self.needs_noise(index));
                if noise.is_none() && self.needs_noise(index) {
                    return Err(Error::Usage(format!("ddpm needs noise at step {index}")));
                }
                self.ddpm(output, index, latents, noise)?
            }
            SamplerKind::Euler => self.euler(output, index, latents)?,
            SamplerKind::DpmSolver2M => self.dpm_solver(output, index, latents)?,
        })
    }

    /// ᾱ of a timestep; below zero, the value that PNDM and DDIM end at.
    fn alpha_cumprod(&self, timestep: isize) -> f64 {
        match usize::try_from(timestep) {
            Ok(t) => self.schedule.alphas_cumprod()[t],
            Err(_) if self.schedule.config().set_alpha_to_one => 1.0,
            Err(_) => self.schedule.alphas_cumprod()[0],
        }
    }

    /// The distance of neighbouring timesteps under leading spacing, which PNDM and DDIM always step by.
    fn stride(&self) -> isize {
        (self.schedule.num_train_timesteps() / self.steps) as isize
    }

    /// The clean latents that `output` stands for, where latents = alpha·clean + sigma·noise.
    fn predict_sample(&self, output: &Tensor, latents: &Tensor, alpha: f64, sigma: f64) -> TensorResult<Tensor> {
        match self.schedule.config().prediction_type {
            PredictionType::Epsilon => combine(&[(1.0 / alpha, latents), (-sigma / alpha, output)]),
            PredictionType::VPrediction => combine(&[(alpha, latents), (-sigma, output)]),
            PredictionType::Sample => Ok(output.clone()),
        }
    }

    fn clipped(&self, sample: Tensor) -> TensorResult<Tensor> {
        let config = self.schedule.config();
        if config.clip_sample { sample.clamp(-config.clip_sample_range, config.clip_sample_range) } else { Ok(sample) }
    }

    /// # Source
    /// PNDM, section 3 (linear multistep part), as Stable Diffusion uses it: the second call repeats the first step
    /// with the mean of both outputs.
    fn pndm(&mut self, output: &Tensor, index: usize, latents: &Tensor) -> TensorResult<Tensor> {
        let mut from = self.timesteps[index] as isize;
        let mut to = from - self.stride();
        if index == 1 {
            (to, from) = (from, from + self.stride());
        } else {
            self.history.drain(..self.history.len().saturating_sub(3));
            self.history.push(output.clone());
        }
        let past = |k: usize| &self.history[self.history.len() - k];
        let (blended, latents) = match (index, self.history.len()) {
            (0, _) => {
                self.first_latents = Some(latents.clone());
                (output.clone(), latents.clone())
            }
            (1, _) => {
                let first = self.first_latents.take().unwrap_or_else(|| latents.clone());
                (combine(&[(0.5, output), (0.5, past(1))])?, first)
            }
            (_, 2) => (combine(&[(1.5, past(1)), (-0.5, past(2))])?, latents.clone()),
            (_, 3) => (combine(&[(23.0 / 12.0, past(1)), (-16.0 / 12.0, past(2)), (5.0 / 12.0, past(3))])?, latents.clone()),
            _ => {
                let weights = [55.0, -59.0, 37.0, -9.0];
                let terms: Vec<(f64, &Tensor)> = (1..=4).map(|k| (weights[k - 1] / 24.0, past(k))).collect();
                (combine(&terms)?, latents.clone())
            }
        };
        self.pndm_transfer(&blended, &latents, from, to)
    }

    /// # Source
    /// PNDM, equation 9.
    fn pndm_transfer(&self, output: &Tensor, latents: &Tensor, from: isize, to: isize) -> TensorResult<Tensor> {
        let (a_t, a_p) = (self.alpha_cumprod(from), self.alpha_cumprod(to));
        let noise = match self.schedule.config().prediction_type {
            PredictionType::VPrediction => combine(&[(a_t.sqrt(), output), ((1.0 - a_t).sqrt(), latents)])?,
            _ => output.clone(),
        };
        let denominator = a_t * (1.0 - a_p).sqrt() + (a_t * (1.0 - a_t) * a_p).sqrt();
        combine(&[((a_p / a_t).sqrt(), latents), (-(a_p - a_t) / denominator, &noise)])
    }

    /// # Source
    /// DDIM, equation 12 with σ = 0. The noise is the network's own even where the clean latents are clipped.
    fn ddim(&self, output: &Tensor, index: usize, latents: &Tensor) -> TensorResult<Tensor> {
        let t = self.timesteps[index] as isize;
        let (a_t, a_p) = (self.alpha_cumprod(t), self.alpha_cumprod(t - self.stride()));
        let (alpha, sigma) = (a_t.sqrt(), (1.0 - a_t).sqrt());
        let sample = self.predict_sample(output, latents, alpha, sigma)?;
        let noise = match self.schedule.config().prediction_type {
            PredictionType::Epsilon => output.clone(),
            PredictionType::VPrediction => combine(&[(alpha, output), (sigma, latents)])?,
            PredictionType::Sample => combine(&[(1.0 / sigma, latents), (-alpha / sigma, &sample)])?,
        };
        combine(&[(a_p.sqrt(), &self.clipped(sample)?), ((1.0 - a_p).sqrt(), &noise)])
    }

    /// # Source
    /// DDPM, equations 6 and 7, over the chosen timesteps only.
    fn ddpm(&self, output: &Tensor, index: usize, latents: &Tensor, noise: Option<&Tensor>) -> TensorResult<Tensor> {
        let alphas = self.schedule.alphas_cumprod();
        let a_t = alphas[self.timesteps[index] as usize];
        let a_p = self.timesteps.get(index + 1).map_or(1.0, |t| alphas[*t as usize]);
        let beta = 1.0 - a_t / a_p;
        let sample = self.clipped(self.predict_sample(output, latents, a_t.sqrt(), (1.0 - a_t).sqrt())?)?;
        let mean =
            combine(&[(a_p.sqrt() * beta / (1.0 - a_t), &sample), ((a_t / a_p).sqrt() * (1.0 - a_p) / (1.0 - a_t), latents)])?;
        let variance = match self.schedule.config().variance_type {
            VarianceType::FixedSmall => ((1.0 - a_p) / (1.0 - a_t) * beta).max(1e-20),
            VarianceType::FixedLarge => beta,
        };
        noise.map_or(Ok(mean.clone()), |noise| combine(&[(1.0, &mean), (variance.sqrt(), noise)]))
    }

    /// # Source
    /// Karras et al. 2022, algorithm 1 without churn. Latents are clean + sigma·noise here.
    fn euler(&self, output: &Tensor, index: usize, latents: &Tensor) -> TensorResult<Tensor> {
        let (sigma, to) = (self.sigmas[index], self.sigmas[index + 1]);
        let sample = match self.schedule.config().prediction_type {
            PredictionType::Epsilon => combine(&[(1.0, latents), (-sigma, output)])?,
            PredictionType::VPrediction => {
                let power = sigma * sigma + 1.0;
                combine(&[(-sigma / power.sqrt(), output), (1.0 / power, latents)])?
            }
            PredictionType::Sample => output.clone(),
        };
        combine(&[(to / sigma, latents), (1.0 - to / sigma, &sample)])
    }

    /// # Source
    /// DPM-Solver++, algorithm 2 (midpoint), first order at both ends as diffusers does.
    fn dpm_solver(&mut self, output: &Tensor, index: usize, latents: &Tensor) -> TensorResult<Tensor> {
        let split = |sigma: f64| (1.0 / sigma.hypot(1.0), sigma / sigma.hypot(1.0));
        let (alpha, sigma) = split(self.sigmas[index]);
        let sample = self.predict_sample(output, latents, alpha, sigma)?;
        let Some(earlier) = self.history.pop().filter(|_| index + 1 < self.timesteps.len()) else {
            self.history.push(sample.clone());
            return self.dpm_first_order(&sample, index, latents);
        };
        let (alpha_to, sigma_to) = split(self.sigmas[index + 1]);
        // λ = ln(alpha / sigma) = −ln(sigmas)
        let lambda = |i: usize| -self.sigmas[i].ln();
        let h = lambda(index + 1) - lambda(index);
        let ratio = (lambda(index) - lambda(index - 1)) / h;
        let gain = -alpha_to * (-h).exp_m1();
        let result =
            combine(&[(sigma_to / sigma, latents), (gain * (1.0 + 0.5 / ratio), &sample), (-gain * 0.5 / ratio, &earlier)])?;
        self.history.push(sample);
        Ok(result)
    }

    fn dpm_first_order(&self, sample: &Tensor, index: usize, latents: &Tensor) -> TensorResult<Tensor> {
        let (from, to) = (self.sigmas[index], self.sigmas[index + 1]);
        let (norm_from, norm_to) = (from.hypot(1.0), to.hypot(1.0));
        // exp(−h) = to / from
        combine(&[((to / norm_to) / (from / norm_from), latents), ((1.0 - to / from) / norm_to, sample)])
    }
}

/// Σ weight · tensor.
fn combine(terms: &[(f64, &Tensor)]) -> TensorResult<Tensor> {
    let ((weight, first), rest) = terms.split_first().ok_or_else(|| candle_core::Error::Msg("no terms".into()))?;
    rest.iter().try_fold(first.affine(*weight, 0.0)?, |sum, (weight, tensor)| sum + tensor.affine(*weight, 0.0)?)
}
