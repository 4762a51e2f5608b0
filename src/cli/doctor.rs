//! `datum doctor`

use super::common::{ComputeArgs, DisplayArgs};
use super::settings;
use crate::base::{Error, Result, device};
use crate::data::Dataset;
use crate::io::hub::HubSettings;
use crate::nn;
use crate::report::terminal::{facts, memory, table};
use candle_core::Device;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use sysinfo::{Disks, System};

/// Say what this machine and this program have: processor, memory, models, data sets
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum doctor\n  datum doctor --json\n  datum doctor --self-test --device cuda")]
pub struct DoctorArgs {
    /// Run every operation forward and backward on the device and compare it with formulas in f64 on the processor
    #[arg(long)]
    self_test: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    display: DisplayArgs,
}

/// What was found; paths as text, since what is not UTF-8 in them is no JSON.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    program: Option<String>,
    features: Vec<&'static str>,
    /// What `--device auto` takes, or the device that was asked for.
    device: String,
    processor: String,
    threads: usize,
    vector_instructions: Vec<&'static str>,
    memory_bytes: Option<u64>,
    available_memory_bytes: Option<u64>,
    /// Where runs go.
    runs: String,
    free_disk_bytes: Option<u64>,
    hub: Hub,
    datasets: BTreeMap<String, Option<String>>,
    /// What may surprise.
    warnings: Vec<String>,
}

/// The cache of models.
#[derive(Debug, Serialize)]
struct Hub {
    cache: String,
    models: Vec<String>,
    endpoint: String,
    offline: bool,
    has_token: bool,
}

/// Runs the verb.
pub fn run(args: DoctorArgs) -> Result<()> {
    let device = args.compute.apply_f32()?;
    if args.self_test {
        return self_test(&device, &args.display);
    }
    let findings = examine(&device);
    args.display.result(&findings, || text(&findings))
}

/// # Errors
/// [`Error::Environment`] when an operation is wrong there.
fn self_test(device: &Device, display: &DisplayArgs) -> Result<()> {
    let rows = nn::self_test::run(device)?;
    let wrong = rows.iter().filter(|row| !row.ok()).count();
    let as_json = |row: &nn::self_test::Row| {
        let (error, tolerance) = (row.error, row.tolerance);
        json!({ "op": row.op, "dtype": row.dtype, "error": error, "tolerance": tolerance, "milliseconds": row.milliseconds, "ok": row.ok() })
    };
    let name = device::name(device);
    let result = json!({ "device": name, "wrong": wrong, "operations": rows.iter().map(as_json).collect::<Vec<_>>() });
    display.result(&result, || {
        let line = |row: &nn::self_test::Row| {
            let numbers = [format!("{:.1e}", row.error), format!("{:.0e}", row.tolerance), format!("{:.3}", row.milliseconds)];
            let verdict = if row.ok() { "ok" } else { "WRONG" };
            [&[row.op.to_string(), row.dtype.into()], numbers.as_slice(), &[verdict.into()]].concat()
        };
        let rows: Vec<Vec<String>> = rows.iter().map(line).collect();
        format!(
            "{}\n\n{} operations on {name}, {wrong} wrong",
            table(&["operation", "type", "error", "allowed", "ms", ""], &rows),
            rows.len()
        )
    })?;
    match wrong {
        0 => Ok(()),
        _ => Err(Error::environment(
            format!("{wrong} operations are wrong on {name}"),
            "compute on the processor (`--device cpu`), and report this with the table above",
        )),
    }
}

fn examine(device: &Device) -> Findings {
    let system = system();
    let system = system.as_ref();
    let program = std::env::current_exe().ok();
    let search = settings::search();
    let shown = |path: &Path| path.display().to_string();
    let root = |name: String| (name.clone(), Dataset::open(&name, &search).ok().map(|dataset| shown(&dataset.root)));
    let processor = system.and_then(|system| system.cpus().first()).map(|cpu| cpu.brand().trim().to_string()).unwrap_or_default();
    let mut findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        features: [("cuda", cfg!(feature = "cuda")), ("cudnn", cfg!(feature = "cudnn"))]
            .into_iter()
            .filter_map(|(name, there)| there.then_some(name))
            .collect(),
        device: device::name(device),
        processor,
        threads: rayon::current_num_threads(),
        vector_instructions: vector_instructions(),
        memory_bytes: system.map(System::total_memory),
        available_memory_bytes: system.map(System::available_memory),
        runs: shown(&std::path::absolute(settings::RUNS).unwrap_or_else(|_| settings::RUNS.into())),
        free_disk_bytes: free_disk(),
        hub: hub(),
        datasets: search.names().into_iter().map(root).collect(),
        warnings: Vec::new(),
        program: program.as_deref().map(shown),
    };
    findings.warnings = warnings(&findings, program.as_deref());
    findings
}

fn system() -> Option<System> {
    let memory = sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::everything());
    System::new_with_specifics(memory.with_cpu(sysinfo::CpuRefreshKind::nothing())).ok()
}

/// Memory that programs can have now, in bytes.
pub fn available_memory() -> Option<u64> {
    system().as_ref().map(System::available_memory)
}

fn vector_instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("amx_bf16", nn::bf16_available()),
        ];
        known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Free space where runs go: on the disk whose mount point is the longest part of this folder's path.
fn free_disk() -> Option<u64> {
    let here = std::env::current_dir().ok()?.canonicalize().ok()?;
    let disks = Disks::new_with_refreshed_list().ok()?;
    let own = disks.iter().filter(|disk| here.starts_with(disk.mount_point()));
    own.max_by_key(|disk| disk.mount_point().components().count()).map(|disk| disk.available_space())
}

fn hub() -> Hub {
    let settings = HubSettings::from_variables(|name| std::env::var(name).ok());
    let entries = settings.cache.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.strip_prefix("models--").map(|name| name.replacen("--", "/", 1))
    });
    let mut models: Vec<String> = names.collect();
    models.sort();
    Hub {
        cache: settings.cache.display().to_string(),
        models,
        endpoint: settings.endpoint,
        offline: settings.offline,
        has_token: settings.token.is_some(),
    }
}

fn warnings(findings: &Findings, program: Option<&Path>) -> Vec<String> {
    let mut warnings = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(other) = program.and_then(|own| earlier_in(&path, own)) {
        warnings.push(format!(
            "`datum` in your shell is another program: {} (Datumaro installs one of this name); call this one by its path or put \
             its folder first in PATH",
            other.display()
        ));
    }
    if cfg!(target_arch = "x86_64") && !findings.vector_instructions.contains(&"avx2") {
        warnings.push("this processor has no AVX2: everything works, several times slower".into());
    }
    if let Some(free) = findings.available_memory_bytes.filter(|free| *free < 2 << 30) {
        warnings.push(format!("{} of memory are free; see `datum personalize … --plan` before training", memory(free)));
    }
    if let Some(free) = findings.free_disk_bytes.filter(|free| *free < 5 << 30) {
        warnings.push(format!("{} of disk are free where runs go; a personalised Stable Diffusion takes 4 GiB", memory(free)));
    }
    warnings
}

/// The program that a shell would start for the name of this one, if it is not this one.
fn earlier_in(path: &std::ffi::OsStr, own: &Path) -> Option<PathBuf> {
    let name = own.file_name()?;
    let first = std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| file.is_file())?;
    let same = first.canonicalize().ok().zip(own.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    (!same).then_some(first)
}

fn text(findings: &Findings) -> String {
    let list = |items: &[String]| if items.is_empty() { "none".to_string() } else { items.join(", ") };
    let owned = |items: &[&str]| list(&items.iter().map(ToString::to_string).collect::<Vec<_>>());
    let size = |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
    let hub = &findings.hub;
    let answer = |yes: bool| if yes { "yes" } else { "no" };
    let (there, missing): (Vec<_>, Vec<_>) = findings.datasets.iter().partition(|(_, root)| root.is_some());
    let there: Vec<String> =
        there.iter().filter_map(|(name, root)| root.as_ref().map(|root| format!("{name} ({root})"))).collect();
    let missing: Vec<String> = missing.into_iter().map(|(name, _)| name.clone()).collect();
    let mut text = facts(&[
        ("datum", findings.version.to_string()),
        ("program", findings.program.clone().unwrap_or_default()),
        ("GPU features", owned(&findings.features)),
        ("device", findings.device.clone()),
        ("processor", format!("{}, {} threads, {}", findings.processor, findings.threads, owned(&findings.vector_instructions))),
        ("memory", format!("{}, {} available", size(findings.memory_bytes), size(findings.available_memory_bytes))),
        ("runs go to", format!("{}, {} free", findings.runs, size(findings.free_disk_bytes))),
        ("model cache", hub.cache.clone()),
        ("models there", list(&hub.models)),
        ("model hub", format!("{}, offline: {}, token: {}", hub.endpoint, answer(hub.offline), answer(hub.has_token))),
        ("data sets", list(&there)),
        ("not found", list(&missing)),
    ]);
    for warning in &findings.warnings {
        text += &format!("\n\nwarning: {warning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_of_this_name_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let bin = folder.path().join(name);
            std::fs::create_dir(&bin).unwrap();
            let program = bin.join(format!("datum{}", std::env::consts::EXE_SUFFIX));
            std::fs::write(&program, name).unwrap();
            program
        };
        let (own, other) = (place("own"), place("other"));
        let empty = folder.path().to_path_buf();
        let path = |programs: &[&PathBuf]| {
            let folders = programs.iter().map(|program| program.parent().unwrap().to_path_buf());
            std::env::join_paths(std::iter::once(empty.clone()).chain(folders)).unwrap()
        };
        assert_eq!(earlier_in(&path(&[&other, &own]), &own), Some(other.clone()));
        assert_eq!(earlier_in(&path(&[&own, &other]), &own), None);
        assert_eq!(earlier_in(&path(&[]), &own), None);
    }
}
