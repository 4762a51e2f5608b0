//! The optimiser and the schedules against PyTorch, diffusers and mmcv (generators: tests/golden/train_*.py).

use candle_core::{Device, Tensor, Var};
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::nn::{Builder, Init};
use datum::train::Gradients;
use datum::train::optim::{AdamW, AdamWConfig, Group, GroupRule, parameter_groups};
use datum::train::schedule::{Schedule, Shape};
use std::collections::BTreeMap;

fn golden() -> SafetensorsFile {
    SafetensorsFile::open("tests/golden/train_adamw.safetensors".as_ref()).unwrap()
}

/// Largest difference, relative to the largest expected value. f32 sums in another order stay below 1e-6.
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |a, x| a.max(x.abs()));
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-6 * largest, "{what}: {a} instead of {b}");
    }
}

fn rules() -> Vec<GroupRule> {
    let rule = |key: &str, learning_rate_scale, weight_decay_scale| GroupRule {
        key: key.into(),
        learning_rate_scale,
        weight_decay_scale,
    };
    vec![rule("norm", 1.0, 0.0), rule("head", 10.0, 1.0), rule("pos_block", 1.0, 0.0)]
}

fn optimizer(golden: &SafetensorsFile, prefix: &str) -> AdamW {
    let values: BTreeMap<String, Tensor> = golden
        .shapes()
        .into_keys()
        .filter_map(|name| Some((name.strip_prefix(prefix)?.to_string(), golden.load(&name, &Device::Cpu).unwrap())))
        .collect();
    let names: Vec<(String, Vec<usize>)> = values.iter().map(|(n, t)| (n.clone(), t.dims().to_vec())).collect();
    let builder = Builder::from_source(values, 0);
    for (name, shape) in &names {
        builder.get(shape, name, Init::Zeros).unwrap();
    }
    let groups = parameter_groups(&builder.finish().unwrap(), 0.01, &rules());
    AdamW::new(groups, AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() }).unwrap()
}

fn gradients(golden: &SafetensorsFile, step: usize) -> Gradients {
    let prefix = format!("gradient.{step}.");
    let named = golden
        .shapes()
        .into_keys()
        .filter_map(|name| Some((name.strip_prefix(&prefix)?.to_string(), golden.load(&name, &Device::Cpu).unwrap())));
    named.collect()
}

fn run(optimizer: &mut AdamW, golden: &SafetensorsFile, steps: std::ops::Range<usize>) -> Vec<f64> {
    steps.map(|step| optimizer.step(&gradients(golden, step), 1e-2 / (step + 1) as f64).unwrap()).collect()
}

#[test]
fn five_steps_agree_with_pytorch() {
    let golden = golden();
    let mut optimizer = optimizer(&golden, "start.");
    let norms = golden.load("norms", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    for (step, expected) in norms.iter().enumerate() {
        let norm = run(&mut optimizer, &golden, step..step + 1)[0];
        assert!((norm / f64::from(*expected) - 1.0).abs() < 1e-6, "norm {norm} instead of {expected}");
        for (name, var) in optimizer.parameters() {
            let expected = golden.load(&format!("after.{step}.{name}"), &Device::Cpu).unwrap();
            assert_close(var, &expected, &format!("{name} after step {step}"));
        }
    }
    for (name, tensor) in optimizer.state().unwrap() {
        for kind in ["exp_avg", "exp_avg_sq"] {
            if let Some(parameter) = name.strip_suffix(&format!(".{kind}")) {
                assert_close(&tensor, &golden.load(&format!("{kind}.{parameter}"), &Device::Cpu).unwrap(), &name);
            }
        }
    }
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let golden = golden();
    let mut whole = optimizer(&golden, "start.");
    run(&mut whole, &golden, 0..5);
    let mut first = optimizer(&golden, "start.");
    run(&mut first, &golden, 0..3);
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("optimizer.safetensors");
    datum::io::weights::save(&path, &first.state().unwrap(), &BTreeMap::new()).unwrap();
    let mut second = optimizer(&golden, "start.");
    for ((_, to), (_, from)) in second.parameters().zip(first.parameters()) {
        to.set(from).unwrap();
    }
    second.load_state(&SafetensorsFile::open(&path).unwrap()).unwrap();
    run(&mut second, &golden, 3..5);
    for ((name, a), (_, b)) in whole.parameters().zip(second.parameters()) {
        let bits = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(a), bits(b), "{name}");
    }
    let other = AdamW::new(vec![], AdamWConfig::default()).unwrap().load_state(&SafetensorsFile::open(&path).unwrap());
    assert!(other.unwrap_err().to_string().contains("`block.weight.exp_avg`"));
}

#[test]
fn updates_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let count = 100_000;
        let draw = |seed| datum::base::Rng::stream(seed, "test", &[]).normal_tensor(&[count], &Device::Cpu).unwrap();
        let var = Var::from_tensor(&draw(1)).unwrap();
        let group = Group {
            name: "all".into(),
            parameters: vec![("w".into(), var.clone())],
            learning_rate_scale: 1.0,
            weight_decay: 0.1,
        };
        let config = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(vec![group], config).unwrap();
        let gradients: Gradients = [("w".to_string(), draw(2))].into_iter().collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let norm = pool.install(|| optimizer.step(&gradients, 1e-3).unwrap());
        (norm.to_bits(), var.to_vec1::<f32>().unwrap())
    };
    assert!(run(1) == run(3));
}

#[test]
fn head_rules_win_over_norm_rules() {
    let golden = golden();
    let optimizer = optimizer(&golden, "start.");
    let found: Vec<_> =
        optimizer.groups().iter().map(|g| (g.name.as_str(), g.parameters.len(), g.learning_rate_scale, g.weight_decay)).collect();
    assert_eq!(found, [("head", 2, 10.0, 0.01), ("norm", 1, 1.0, 0.0), ("default", 2, 1.0, 0.01)]);
}

#[test]
fn schedules_agree_with_diffusers() {
    let at = [0, 1, 9, 10, 11, 40, 55, 77, 99, 100, 120];
    #[rustfmt::skip]
    let tables = [
        (Shape::Constant, 1, 1.0, [5e-4; 11]),
        (Shape::ConstantWithWarmup, 1, 1.0, [0.0, 5e-05, 0.00045, 0.0005, 0.0005, 0.0005, 0.0005, 0.0005, 0.0005, 0.0005, 0.0005]),
        (Shape::Linear, 1, 1.0, [0.0, 5e-05, 0.00045, 0.0005, 0.0004944444444, 0.0003333333333, 0.00025, 0.0001277777778, 5.555555556e-06, 0.0, 0.0]),
        (Shape::Cosine, 1, 1.0, [0.0, 5e-05, 0.00045, 0.0005, 0.0004998477068, 0.000375, 0.00025, 7.633540739e-05, 1.522932452e-07, 0.0, 5.848888922e-05]),
        (Shape::CosineWithRestarts, 3, 1.0, [0.0, 5e-05, 0.00045, 0.0005, 0.0004986304738, 0.0005, 0.00025, 0.0004357862064, 1.369526158e-06, 0.0, 0.0]),
        (Shape::Polynomial, 1, 2.0, [0.0, 5e-05, 0.00045, 0.0005, 0.0004889528272, 0.0002222777778, 0.000125075, 3.274779012e-05, 1.617160494e-07, 1e-07, 1e-07]),
    ];
    for (shape, cycles, power, expected) in tables {
        let schedule = Schedule { shape, steps: 100, warmup_steps: 10, cycles, power };
        schedule.validate().unwrap();
        for (step, expected) in at.into_iter().zip(expected) {
            let found = schedule.learning_rate(5e-4, step);
            assert!((found - expected).abs() <= 1e-9 * 5e-4, "{shape:?} at {step}: {found} instead of {expected}");
        }
    }
}

#[test]
fn poly_agrees_with_mmcv() {
    let schedule = Schedule { shape: Shape::Poly, steps: 40_000, warmup_steps: 1500, ..Schedule::default() };
    let expected = [
        (0, 6.0e-11),
        (1, 4.0058958501e-8),
        (2, 8.0055917004e-8),
        (10, 3.999595851e-7),
        (100, 3.99005586e-6),
        (750, 2.9437529438e-5),
        (1499, 5.7712999039e-5),
        (1500, 5.775e-5),
        (10_000, 4.5e-5),
        (20_000, 3e-5),
        (39_999, 1.5e-9),
    ];
    for (step, expected) in expected {
        let found = schedule.learning_rate(6e-5, step);
        assert!((found / expected - 1.0).abs() < 1e-9, "at {step}: {found} instead of {expected}");
    }
}

#[test]
fn recipes_name_shapes_in_snake_case() {
    let schedule: Schedule = toml::from_str("shape = \"cosine_with_restarts\"\nsteps = 5\ncycles = 2").unwrap();
    assert_eq!((schedule.shape, schedule.steps, schedule.cycles), (Shape::CosineWithRestarts, 5, 2));
    assert!(toml::from_str::<Schedule>("shpae = \"poly\"").is_err());
}
