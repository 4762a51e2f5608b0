//! What a launcher says about the processes it started.

use std::str::FromStr;

/// One of several processes that were started together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of this process among those of its machine.
    pub local_rank: usize,
    /// Number of processes on its machine (on the first one, where they differ).
    pub local_size: usize,
    /// Processors for this process alone, where the launcher says so.
    pub processors: Option<usize>,
}

/// Variables for rank, size, rank on the machine, number on the machine: Open MPI; MPICH and Intel MPI; a step of SLURM (not
/// `SLURM_NTASKS`, which a batch script has too); torchrun.
const LAUNCHERS: [[&str; 4]; 4] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
];

/// What the launcher of this process says; none when it was started by hand.
pub fn launched() -> Option<Launched> {
    from_variables(|name| std::env::var(name).ok())
}

fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    let number = |name: &str| leading(&variable(name)?);
    let processors = number("SLURM_CPUS_PER_TASK");
    LAUNCHERS.iter().find_map(|[rank, size, local_rank, local_size]| {
        let (rank, size, local_rank) = (number(rank)?, number(size)?, number(local_rank)?);
        let local_size = number(local_size).unwrap_or(size);
        (rank < size).then_some(Launched { rank, size, local_rank, local_size, processors })
    })
}

/// The number a text starts with: SLURM writes `2(x3)` for two processes on each of three machines.
fn leading(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    usize::from_str(&text[..digits]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Launched> {
        let lines: Vec<(&str, &str)> = text.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        from_variables(|name| lines.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_understood() {
        let of =
            |rank, size, local_rank, local_size, processors| Some(Launched { rank, size, local_rank, local_size, processors });
        let open_mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2";
        assert_eq!(read(open_mpi), of(1, 2, 1, 2, None));
        let slurm = "SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=6 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x3) SLURM_CPUS_PER_TASK=8";
        assert_eq!(read(slurm), of(5, 6, 1, 2, Some(8)));
        assert_eq!(read(&format!("{slurm} {open_mpi}")), of(1, 2, 1, 2, Some(8)), "mpirun within a step of SLURM");
        assert_eq!(read("RANK=0 WORLD_SIZE=4 LOCAL_RANK=0"), of(0, 4, 0, 4, None));
    }

    #[test]
    fn a_batch_script_is_one_process() {
        assert_eq!(read("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0"), None);
        assert_eq!(read("RANK=2 WORLD_SIZE=4"), None);
        assert_eq!(read("RANK=x WORLD_SIZE=4 LOCAL_RANK=0"), None);
        assert_eq!(read(""), None);
    }
}
