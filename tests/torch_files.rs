//! PyTorch checkpoints made by tests/golden/torch_files.py.

use candle_core::{DType, Device, Tensor};
use datum::io::weights::{PickleFile, TensorSource, open};
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    Path::new("tests/golden/torch_files").join(name)
}

fn numbers(source: &dyn TensorSource, name: &str) -> (Vec<usize>, Vec<f64>) {
    let tensor = source.load(name, &Device::Cpu).unwrap();
    let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (tensor.dims().to_vec(), values)
}

#[test]
fn every_kind_of_tensor_comes_out_of_every_layout() {
    let base: Vec<f64> = (0..24).map(|i| f64::from(i) / 8.0).collect();
    let at = |i: usize, j: usize, k: usize| base[i * 12 + j * 4 + k];
    let transposed = (0..4).flat_map(|k| (0..2).flat_map(move |i| (0..3).map(move |j| (i, j, k))));
    let expected: Vec<(&str, Vec<usize>, Vec<f64>)> = vec![
        ("base", vec![2, 3, 4], base.clone()),
        ("transposed", vec![4, 2, 3], transposed.map(|(i, j, k)| at(i, j, k)).collect()),
        ("slice", vec![2, 2], vec![at(1, 1, 0), at(1, 1, 2), at(1, 2, 0), at(1, 2, 2)]),
        ("expanded", vec![2, 3], vec![7.0; 6]),
        ("tied.a", vec![2], vec![1.5, -2.0]),
        ("tied.b", vec![2], vec![1.5, -2.0]),
        ("param", vec![1, 1], vec![0.25]),
        ("scalar", vec![], vec![3.5]),
        ("empty", vec![0, 4], vec![]),
        ("f16", vec![2], vec![1.0, -0.5]),
        ("bf16", vec![2], vec![1.0, -0.5]),
        ("f64", vec![2], vec![1.0, -0.125]),
        ("i64", vec![2], vec![1.0, -(2f64.powi(40))]),
        ("i32", vec![2], vec![1.0, -2.0]),
        ("i16", vec![2], vec![1.0, -2.0]),
        ("i8", vec![2], vec![1.0, -2.0]),
        ("u8", vec![2], vec![1.0, 254.0]),
        ("bool", vec![2], vec![1.0, 0.0]),
    ];
    for layout in ["nested.pth", "nested-legacy.pth", "nested-protocol4.pth"] {
        let source = open(&file(layout)).unwrap();
        assert_eq!(source.shapes().len(), expected.len(), "{layout}");
        for (name, shape, values) in &expected {
            assert_eq!(numbers(&source, name), (shape.clone(), values.clone()), "{layout} {name}");
            assert_eq!(source.shapes()[*name], *shape);
        }
        for (name, dtype) in [("f16", DType::F32), ("f64", DType::F32), ("i64", DType::I64), ("bool", DType::U8)] {
            assert_eq!(source.load(name, &Device::Cpu).unwrap().dtype(), dtype);
        }
    }
}

#[test]
fn a_plain_state_dict_and_chosen_groups() {
    let flat = open(&file("flat.pth")).unwrap();
    let names: Vec<String> = flat.shapes().into_keys().collect();
    let expected = ["0.bias", "0.weight", "1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight"];
    assert_eq!(names, expected);

    let message = PickleFile::open(&file("groups.pth")).err().unwrap().to_string();
    assert!(message.contains("several groups of tensors: student, teacher"), "{message}");
    let teacher = PickleFile::open_group(&file("groups.pth"), Some("teacher")).unwrap();
    assert_eq!(numbers(&teacher, "w").1, [0.0]);
    assert!(PickleFile::open_group(&file("groups.pth"), Some("other")).is_err());
}

#[test]
fn foreign_objects_are_named_and_never_run() {
    for name in ["evil.pth", "evil-legacy.pth", "evil-inside.pth"] {
        let error = open(&file(name)).err().unwrap();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.contains("expected only tensors") && message.contains(".system"), "{name}: {message}");
    }
    let beside = open(&file("evil-beside.pth")).unwrap();
    assert_eq!(numbers(&beside, "w").1, [1.0, 1.0]);
    assert!(!Path::new("/tmp/pickle-was-executed").exists());
}

#[test]
fn every_truncation_and_many_damages_are_errors_or_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.pth");
    let mut rng = datum::base::Rng::stream(0, "damage", &[]);
    for name in ["nested.pth", "nested-legacy.pth", "nested-protocol4.pth"] {
        let whole = std::fs::read(file(name)).unwrap();
        for _ in 0..40 {
            let cut = rng.below(whole.len());
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = open(&path).err().unwrap_or_else(|| panic!("{name} cut at {cut} was accepted"));
            assert_eq!(error.exit_code(), 3);
        }
        for _ in 0..200 {
            let mut bytes = whole.clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len());
                bytes[at] = rng.below(256) as u8;
            }
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(source) = open(&path) {
                for (name, shape) in source.shapes() {
                    if let Ok(tensor) = source.load(&name, &Device::Cpu) {
                        assert_eq!(tensor.dims(), shape);
                    }
                }
            }
        }
    }
}

#[test]
fn safetensors_are_recognised_without_their_extension() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    let tensors = [("w".to_string(), Tensor::ones((2,), DType::F32, &Device::Cpu).unwrap())].into();
    datum::io::weights::save(&path, &tensors, &Default::default()).unwrap();
    assert_eq!(numbers(&open(&path).unwrap(), "w").1, [1.0, 1.0]);
    std::fs::write(&path, b"hello, this is text").unwrap();
    assert!(open(&path).err().unwrap().to_string().contains("another format"));
    std::fs::write(&path, b"").unwrap();
    assert!(open(&path).err().unwrap().to_string().contains("an empty file"));
}
