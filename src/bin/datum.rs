//! The `datum` program; everything is in the library.

fn main() -> std::process::ExitCode {
    datum::cli::datum()
}
