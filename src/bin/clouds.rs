//! The `clouds` program; everything is in the library.

fn main() -> std::process::ExitCode {
    datum::cli::clouds()
}
