//! The program `advdmd`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
