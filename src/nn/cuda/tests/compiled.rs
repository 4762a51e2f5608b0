//! Every kernel, compiled for a GPU where there is nvcc: it is CUDA C, and its registers suffice.

use super::super::machine::{Kind, Module, Source};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `CUDA_HOME`'s, that of `scripts/build-cuda.sh`, or one in the path.
fn nvcc() -> Option<PathBuf> {
    let toolkit = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda/toolkit/nvidia/cu13");
    let homes = std::env::var_os("CUDA_HOME").map(PathBuf::from).into_iter().chain([toolkit]);
    let candidates = homes.map(|home| home.join("bin/nvcc")).chain(["nvcc".into()]);
    let runs = |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output().is_ok_and(|out| out.status.success());
    candidates.into_iter().find(runs)
}

/// What nvcc says when it compiles the module for an H100 or H200.
fn compile(nvcc: &Path, folder: &Path, module: Module) -> String {
    let source = folder.join(format!("{module:?}.cu"));
    std::fs::write(&source, module.text()).unwrap();
    let mut command = Command::new(nvcc);
    command.args(["--cubin", "--gpu-architecture=sm_90", "--resource-usage", "--output-file"]);
    let out = command.args([&source.with_extension("cubin"), &source]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{module:?}: {said}");
    said
}

#[test]
fn kernels_compile_for_gpus_and_spill_no_registers() {
    let Some(nvcc) = nvcc() else {
        eprintln!("skipped: no `nvcc` (CUDA_HOME, scripts/build-cuda.sh, PATH)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let plain = [Source::Activation, Source::Depthwise, Source::Loss, Source::Norm, Source::Optimizer, Source::Pool];
    let sources = plain.into_iter().chain([Source::Reduce, Source::Resize, Source::Sampling]);
    let sources = sources.chain([1, 2, 3, 8].map(Source::Attention));
    let modules: Vec<_> = sources.flat_map(|source| [Kind::F32, Kind::Bf16].map(|values| Module { source, values })).collect();
    modules.into_par_iter().for_each(|module| {
        let said = compile(&nvcc, folder.path(), module);
        let (kernels, clean) = (said.matches("Compiling entry function").count(), said.matches(", 0 bytes spill stores").count());
        assert!(kernels > 0 && clean == kernels, "{module:?}: {said}");
    });
}
