//! The noising process of DDPM: its constants, noisy latents and training targets.

use crate::base::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    #[default]
    Epsilon,
    /// `√ac·noise − √(1−ac)·latents`.
    VPrediction,
    /// The clean latents.
    Sample,
}

/// How β grows over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in √β.
    #[default]
    ScaledLinear,
    /// Linear in β.
    Linear,
    /// Squared cosine, β at most 0.999.
    SquaredcosCapV2,
}

/// How a sampler spreads its steps over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `T / n` from 0, plus `steps_offset`.
    Leading,
    /// Even from 0 to T − 1.
    Linspace,
    /// Multiples of `T / n` counted down from T − 1.
    Trailing,
}

/// The variance of the noise that ancestral DDPM sampling adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior variance given the clean latents.
    #[default]
    FixedSmall,
    /// β of the step.
    FixedLarge,
}

/// The keys of a diffusers `scheduler_config.json` that change numbers. Missing keys take the values of Stable
/// Diffusion 1.4; other keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoiseConfig {
    /// First β.
    pub beta_start: f64,
    /// Last β.
    pub beta_end: f64,
    /// How β grows in between.
    pub beta_schedule: BetaSchedule,
    /// Every β by itself; replaces the three keys above.
    pub trained_betas: Option<Vec<f64>>,
    /// Number T of training timesteps.
    pub num_train_timesteps: usize,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// `None`: the sampler's own habit (leading for PNDM, DDIM and DDPM, linspace for Euler and DPM++).
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every timestep under leading spacing.
    pub steps_offset: usize,
    /// PNDM: start with multistep formulas of lower order instead of Runge-Kutta steps. Only `true` is supported.
    pub skip_prk_steps: bool,
    /// PNDM and DDIM: the last step goes to ᾱ = 1 instead of the first ᾱ of the schedule.
    pub set_alpha_to_one: bool,
    /// DDIM and DDPM: clip the predicted clean latents.
    pub clip_sample: bool,
    /// Limit of that clipping.
    pub clip_sample_range: f64,
    /// DDPM: variance of the added noise.
    pub variance_type: VarianceType,
    /// Zero terminal signal-to-noise ratio. Only `false` is supported.
    pub rescale_betas_zero_snr: bool,
}

impl Default for NoiseConfig {
    fn default() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            num_train_timesteps: 1000,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 1,
            skip_prk_steps: true,
            set_alpha_to_one: false,
            clip_sample: false,
            clip_sample_range: 1.0,
            variance_type: VarianceType::FixedSmall,
            rescale_betas_zero_snr: false,
        }
    }
}

/// The constants of one noising process.
///
/// # Source
/// DDPM, equations 2 to 4. Rounded where PyTorch rounds: β is computed in single precision.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    config: NoiseConfig,
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// Computes the constants.
    ///
    /// # Errors
    /// Settings without meaning: no timesteps, a β outside (0, 1), unsupported options.
    pub fn new(config: &NoiseConfig) -> Result<Self> {
        let betas = betas(config)?;
        if let Some((t, beta)) = betas.iter().enumerate().find(|(_, beta)| !(**beta > 0.0 && **beta < 1.0)) {
            return Err(Error::Usage(format!("scheduler config: every beta must lie in (0, 1), beta {t} is {beta}")));
        }
        if config.rescale_betas_zero_snr {
            return Err(Error::Usage("scheduler config: `rescale_betas_zero_snr: true` is not supported".into()));
        }
        let mut product = 1.0;
        let alphas_cumprod = betas.iter().map(|beta| {
            product *= f64::from(1.0 - *beta as f32);
            product
        });
        Ok(Self { alphas_cumprod: alphas_cumprod.collect(), betas, config: config.clone() })
    }

    /// The settings it was made from.
    pub fn config(&self) -> &NoiseConfig {
        &self.config
    }

    /// Number T of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.betas.len()
    }

    /// β, one per timestep.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// ᾱ = Π (1 − β), one per timestep.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Noisy latents `√ac·latents + √(1−ac)·noise`.
    ///
    /// # Shapes
    /// `latents`, `noise` (B, …), `timesteps` B values → (B, …)
    ///
    /// # Errors
    /// Not one timestep per sample, or a timestep beyond the schedule.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[usize]) -> TensorResult<Tensor> {
        let (signal, spread) = self.scales(latents, timesteps)?;
        latents.broadcast_mul(&signal)? + noise.broadcast_mul(&spread)?
    }

    /// Velocity `√ac·noise − √(1−ac)·latents`.
    ///
    /// # Shapes
    /// As [`Self::add_noise`].
    ///
    /// # Source
    /// Progressive distillation, appendix D.
    pub fn velocity(&self, latents: &Tensor, noise: &Tensor, timesteps: &[usize]) -> TensorResult<Tensor> {
        let (signal, spread) = self.scales(latents, timesteps)?;
        noise.broadcast_mul(&signal)? - latents.broadcast_mul(&spread)?
    }

    /// What the network has to predict for these latents and this noise.
    ///
    /// # Shapes
    /// As [`Self::add_noise`].
    pub fn target(&self, latents: &Tensor, noise: &Tensor, timesteps: &[usize]) -> TensorResult<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(noise.clone()),
            PredictionType::VPrediction => self.velocity(latents, noise, timesteps),
            PredictionType::Sample => Ok(latents.clone()),
        }
    }

    /// √ac and √(1−ac) as (B, 1, …).
    fn scales(&self, latents: &Tensor, timesteps: &[usize]) -> TensorResult<(Tensor, Tensor)> {
        if latents.dims().first() != Some(&timesteps.len()) {
            candle_core::bail!("expected one timestep per sample, found {} for {:?}", timesteps.len(), latents.shape());
        }
        if let Some(t) = timesteps.iter().find(|t| **t >= self.num_train_timesteps()) {
            candle_core::bail!("timestep {t} is beyond the {} of the schedule", self.num_train_timesteps());
        }
        let mut shape = vec![1; latents.rank()];
        shape[0] = timesteps.len();
        let column = |scale: fn(f64) -> f64| {
            let values: Vec<f32> = timesteps.iter().map(|t| scale(self.alphas_cumprod[*t]) as f32).collect();
            Tensor::from_vec(values, shape.as_slice(), latents.device())?.to_dtype(latents.dtype())
        };
        Ok((column(f64::sqrt)?, column(|ac| (1.0 - ac).sqrt())?))
    }
}

fn betas(config: &NoiseConfig) -> Result<Vec<f64>> {
    if let Some(betas) = &config.trained_betas {
        return if betas.is_empty() {
            Err(Error::Usage("scheduler config: `trained_betas` is empty".into()))
        } else {
            Ok(betas.clone())
        };
    }
    let count = config.num_train_timesteps;
    // An upper limit keeps a damaged config from asking for all memory.
    if !(2..=1_000_000).contains(&count) {
        return Err(Error::Usage(format!("scheduler config: expected 2 to 1000000 `num_train_timesteps`, found {count}")));
    }
    let last = (count - 1) as f64;
    let line = |from: f64, to: f64| (0..count).map(move |i| (from + (to - from) * i as f64 / last) as f32);
    Ok(match config.beta_schedule {
        BetaSchedule::Linear => line(config.beta_start, config.beta_end).map(f64::from).collect(),
        BetaSchedule::ScaledLinear => {
            line(config.beta_start.sqrt(), config.beta_end.sqrt()).map(|root| f64::from(root * root)).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            let bar = |i: usize| ((i as f64 / count as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            (0..count).map(|i| f64::from((1.0 - bar(i + 1) / bar(i)).min(0.999) as f32)).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// t, β, ᾱ, √ᾱ, √(1−ᾱ) of Stable Diffusion 1.4, printed by diffusers' DDPMScheduler.
    const TABLE: [(usize, f64, f64, f64, f64); 9] = [
        (0, 8.499999531e-4, 0.999149978, 0.999574900, 0.029155133),
        (1, 8.546985919e-4, 0.998296022, 0.999147654, 0.041279264),
        (21, 9.513914702e-4, 0.980380654, 0.990141749, 0.140069082),
        (100, 1.383972471e-3, 0.894223154, 0.945633769, 0.325233519),
        (250, 2.427760977e-3, 0.673792303, 0.820848525, 0.571145952),
        (500, 4.814953543e-3, 0.276332468, 0.525673389, 0.850686491),
        (750, 8.011578582e-3, 0.056169804, 0.237001687, 0.971509278),
        (981, 1.168475393e-2, 0.005775496, 0.075996682, 0.997108102),
        (999, 1.199999917e-2, 0.004660095, 0.068264887, 0.997667253),
    ];

    #[test]
    fn constants_match_the_reference_table() {
        let schedule = NoiseSchedule::new(&NoiseConfig::default()).unwrap();
        for (t, beta, ac, signal, spread) in TABLE {
            let ours = schedule.alphas_cumprod()[t];
            let pairs = [(schedule.betas()[t], beta), (ours, ac), (ours.sqrt(), signal), ((1.0 - ours).sqrt(), spread)];
            for (found, expected) in pairs {
                // √(1−ᾱ) at t = 0 loses two digits to single-precision ᾱ in the reference.
                assert!((found / expected - 1.0).abs() < 3e-5, "t {t}: {found} instead of {expected}");
            }
            assert!((schedule.betas()[t] / beta - 1.0).abs() < 2e-7 && (ours / ac - 1.0).abs() < 2e-6, "t {t}");
        }
    }

    #[test]
    fn every_sample_has_its_own_timestep() {
        let schedule = NoiseSchedule::new(&NoiseConfig::default()).unwrap();
        let ones = Tensor::ones((2, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let noise = (&ones * -0.5).unwrap();
        let read = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let noisy = read(schedule.add_noise(&ones, &noise, &[500, 0]).unwrap());
        let velocity = read(schedule.velocity(&ones, &noise, &[500, 0]).unwrap());
        let expected = [0.1003301, 0.9995749 - 0.5 * 0.029155133, -1.1135232, -0.5 * 0.9995749 - 0.029155133];
        for (found, expected) in noisy.iter().chain(&velocity).zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
        assert!(schedule.add_noise(&ones, &noise, &[500]).is_err());
        assert!(schedule.add_noise(&ones, &noise, &[500, 1000]).is_err());
    }

    #[test]
    fn a_published_config_is_read_and_nonsense_is_refused() {
        let text = r#"{"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
            "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;
        assert_eq!(serde_json::from_str::<NoiseConfig>(text).unwrap(), NoiseConfig::default());
        for wrong in [
            NoiseConfig { beta_end: 1.5, ..Default::default() },
            NoiseConfig { num_train_timesteps: 0, ..Default::default() },
            NoiseConfig { trained_betas: Some(vec![]), ..Default::default() },
            NoiseConfig { rescale_betas_zero_snr: true, ..Default::default() },
        ] {
            assert_eq!(NoiseSchedule::new(&wrong).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn other_beta_schedules_match_the_reference() {
        // torch: DDPMScheduler(beta_schedule=…, beta_start=1e-4, beta_end=0.02).betas / .alphas_cumprod at 0, 500, 999
        let of = |beta_schedule| {
            NoiseSchedule::new(&NoiseConfig { beta_schedule, beta_start: 1e-4, beta_end: 0.02, ..Default::default() }).unwrap()
        };
        for (schedule, expected) in [(of(BetaSchedule::Linear), LINEAR), (of(BetaSchedule::SquaredcosCapV2), COSINE)] {
            for (t, (beta, ac)) in [0, 500, 999].into_iter().zip(expected) {
                assert!((schedule.betas()[t] / beta - 1.0).abs() < 1e-5, "beta {t}: {}", schedule.betas()[t]);
                assert!((schedule.alphas_cumprod()[t] / ac - 1.0).abs() < 1e-4, "ac {t}: {}", schedule.alphas_cumprod()[t]);
            }
        }
    }
    const LINEAR: [(f64, f64); 3] =
        [(9.999999747e-05, 9.998999834e-01), (1.005995926e-02, 7.779665291e-02), (1.999999955e-02, 4.035830352e-05)];
    const COSINE: [(f64, f64); 3] =
        [(4.128422370e-05, 9.999586940e-01), (3.155691549e-03, 4.922850430e-01), (9.990000129e-01, 2.428734991e-09)];
}
