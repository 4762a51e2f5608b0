//! Samplers against diffusers (tests/golden/samplers.py) and the two toy runs of the specification.

use candle_core::{Device, Tensor};
use datum::diffusion::noise_schedule::{NoiseConfig, NoiseSchedule, PredictionType, TimestepSpacing, VarianceType};
use datum::diffusion::{Sampler, SamplerKind};
use datum::io::weights::{SafetensorsFile, TensorSource};
use std::path::Path;

fn keep(steps: usize) -> Vec<usize> {
    match steps {
        1 => vec![0],
        2 => vec![0, 1, 2],
        50 => vec![0, 1, 2, 3, 4, 5, 25, 48],
        _ => (0..=steps).collect(),
    }
}

fn network(xs: &Tensor, t: f64, prediction: PredictionType) -> Tensor {
    match prediction {
        PredictionType::Epsilon => xs.affine(0.3, 0.0004 * t).unwrap(),
        _ => xs.affine(-0.4, 0.0003 * t).unwrap(),
    }
}

fn run(kind: SamplerKind, config: &NoiseConfig, steps: usize, start: &Tensor, noise: &Tensor) -> (Vec<Tensor>, Vec<f64>) {
    let mut sampler = Sampler::new(kind, config, steps).unwrap();
    let timesteps = sampler.timesteps().to_vec();
    let mut latents = (start * sampler.init_noise_sigma()).unwrap();
    let mut kept = Vec::new();
    for (index, t) in timesteps.iter().enumerate() {
        let output = network(&sampler.scale_input(&latents, index).unwrap(), *t, config.prediction_type);
        let noise = (noise * (index as f64).cos()).unwrap();
        latents = sampler.step(&output, index, &latents, Some(&noise)).unwrap();
        if keep(steps).contains(&index) {
            kept.push(latents.clone());
        }
    }
    kept.push(latents);
    (kept, timesteps)
}

#[test]
fn every_sampler_follows_diffusers() {
    let file = SafetensorsFile::open(Path::new("tests/golden/samplers.safetensors")).unwrap();
    let read = |name: &str| file.load(name, &Device::Cpu).unwrap();
    let (start, noise) = (read("start"), read("noise"));
    let mut cases = 0;
    for key in file.shapes().keys().filter_map(|key| key.strip_suffix("/latents")) {
        let parts: Vec<&str> = key.split('/').collect();
        let (kind, steps): (SamplerKind, usize) = (parts[0].parse().unwrap(), parts[1].parse().unwrap());
        let mut config = NoiseConfig::default();
        if parts[2] == "v_prediction" {
            config.prediction_type = PredictionType::VPrediction;
        }
        match parts[3] {
            "leading" => config.timestep_spacing = Some(TimestepSpacing::Leading),
            "linspace" => config.timestep_spacing = Some(TimestepSpacing::Linspace),
            "trailing" => config.timestep_spacing = Some(TimestepSpacing::Trailing),
            "clip" => {
                config.clip_sample = true;
                config.set_alpha_to_one = true;
                config.steps_offset = 0;
                config.variance_type = VarianceType::FixedLarge;
            }
            _ => {}
        }
        let (kept, timesteps) = run(kind, &config, steps, &start, &noise);
        let expected: Vec<f32> = read(&format!("{key}/timesteps")).to_vec1().unwrap();
        assert_eq!(timesteps.iter().map(|t| *t as f32).collect::<Vec<_>>(), expected, "{key}");
        let expected: Vec<f32> = read(&format!("{key}/latents")).flatten_all().unwrap().to_vec1().unwrap();
        let found: Vec<f32> = Tensor::stack(&kept, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len(), "{key}");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{key} value {i}: {found} instead of {expected}");
        }
        cases += 1;
    }
    assert!(cases >= 70, "only {cases} cases");
}

fn toy(kind: SamplerKind) -> Vec<f32> {
    let mut sampler = Sampler::new(kind, &NoiseConfig::default(), 50).unwrap();
    let mut latents = Tensor::ones((1, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut values = Vec::new();
    for (index, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
        latents = sampler.step(&latents.affine(0.3, 0.001 * t).unwrap(), index, &latents, None).unwrap();
        values.push(latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]);
    }
    values
}

#[test]
fn the_published_toy_runs_come_out() {
    let pndm = [
        (0, 0.964966),
        (1, 0.966846),
        (2, 0.934214),
        (3, 0.902156),
        (4, 0.870712),
        (5, 0.839913),
        (25, 0.381420),
        (49, 0.187339),
        (50, 0.186860),
    ];
    let ddim = [(0, 0.964966), (1, 0.930389), (2, 0.896307), (25, 0.301179), (48, 0.092886), (49, 0.092575)];
    for (kind, expected) in [(SamplerKind::Pndm, &pndm[..]), (SamplerKind::Ddim, &ddim[..])] {
        let values = toy(kind);
        assert_eq!(values.len(), if kind == SamplerKind::Pndm { 51 } else { 50 });
        for (call, expected) in expected {
            assert!((values[*call] - expected).abs() < 1e-5, "{kind:?} call {call}: {} instead of {expected}", values[*call]);
        }
    }
}

#[test]
fn a_batch_equals_its_images() {
    let images: Vec<Tensor> = (0..3).map(|i| Tensor::full(0.5 - i as f32, (1, 1, 2, 2), &Device::Cpu).unwrap()).collect();
    let batch = Tensor::cat(&images, 0).unwrap();
    for kind in SamplerKind::ALL {
        let all = run(kind, &NoiseConfig::default(), 7, &batch, &batch).0.pop().unwrap();
        for (i, image) in images.iter().enumerate() {
            let single = run(kind, &NoiseConfig::default(), 7, image, image).0.pop().unwrap();
            let row = all.narrow(0, i, 1).unwrap();
            assert_eq!(
                row.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                single.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            );
        }
    }
}

fn largest_difference(xs: &Tensor, ys: &Tensor) -> f32 {
    (xs - ys).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// A network that knows the noise leads back to the picture from everywhere, which it only does if the start is as the method
/// expects it.
#[test]
fn from_a_noised_picture_the_way_leads_back() {
    let config = NoiseConfig { prediction_type: PredictionType::Epsilon, ..NoiseConfig::default() };
    let tensor = |seed: f32| (Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap() * f64::from(seed)).unwrap().cos().unwrap();
    let (clean, noise) = (tensor(0.7).reshape((1, 1, 4, 4)).unwrap(), tensor(2.3).reshape((1, 1, 4, 4)).unwrap());
    for kind in [SamplerKind::Ddim, SamplerKind::Euler, SamplerKind::DpmSolver2M] {
        for start in [0, 4, 9] {
            let mut sampler = Sampler::new(kind, &config, 10).unwrap();
            sampler.skip(start).unwrap();
            let mut latents = sampler.noised(&clean, &noise, start).unwrap();
            for index in start..10 {
                let input = sampler.scale_input(&latents, index).unwrap();
                let t = sampler.timesteps()[index];
                // What the network is shown is the mixture of the timestep, for every method.
                if start == index && t.fract() == 0.0 {
                    let mixed = NoiseSchedule::new(&config).unwrap().add_noise(&clean, &noise, &[t as usize]).unwrap();
                    assert!(largest_difference(&input, &mixed) < 1e-5, "{kind:?} from {start}");
                }
                latents = sampler.step(&noise, index, &latents, None).unwrap();
            }
            // DDIM ends at its first timestep, where a little noise is left.
            let rest = largest_difference(&latents, &clean);
            assert!(rest < 0.05, "{kind:?} from {start}: {rest}");
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let config = NoiseConfig::default();
    let xs = Tensor::ones((1, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (kind, steps) in [(SamplerKind::Pndm, 0), (SamplerKind::Ddim, 1001), (SamplerKind::Ddim, 1000)] {
        assert_eq!(Sampler::new(kind, &config, steps).unwrap_err().exit_code(), 2);
    }
    assert!(Sampler::new(SamplerKind::Pndm, &NoiseConfig { skip_prk_steps: false, ..config.clone() }, 5).is_err());
    let mut sampler = Sampler::new(SamplerKind::Ddpm, &config, 5).unwrap();
    assert!(sampler.step(&xs, 1, &xs, Some(&xs)).is_err());
    assert!(sampler.step(&xs, 0, &xs, None).is_err());
    assert!("plms".parse::<SamplerKind>().unwrap_err().to_string().contains("dpmpp-2m"));
}
