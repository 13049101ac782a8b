//! Skeg: Kubernetes in one small binary. This crate wires the parts together and is the command
//! line; it decides nothing.

mod cli;
mod detach;
mod dial;
mod down;
mod forwarding;
mod image;
mod instance;
mod logging;
mod preflight;
mod process;
mod settings;
mod status;
mod up;

use std::process::ExitCode;

/// A third less CPU a write than with glibc's, for a third of a megabyte more in each supervisor.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An error that the user can do something about: printed as one line, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UserError(pub String);

/// `Err` of a [`UserError`], as `anyhow::bail!`.
#[macro_export]
macro_rules! refuse {
    ($($arg:tt)*) => { return Err($crate::UserError(format!($($arg)*)).into()) };
}

/// Prints a line on standard output. Whoever reads it may stop early, and its disk be full: neither
/// is a defect of this program.
#[macro_export]
macro_rules! say { ($($arg:tt)*) => { $crate::print(&format!("{}\n", format_args!($($arg)*))) }; }

/// What a shell shows for a program that SIGPIPE ends.
const ENDED_BY_SIGPIPE: i32 = 128 + libc::SIGPIPE;

/// Prints a text on standard output, or ends the program.
fn print(text: &str) {
    use std::io::{ErrorKind, Write, stdout};
    match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(ENDED_BY_SIGPIPE),
        Err(error) => {
            eprintln!("skeg: cannot write to standard output: {error}");
            std::process::exit(1);
        }
    }
}

fn main() -> ExitCode {
    // The supervisors and container creators are this same binary, re-executed: they must run
    // before anything here starts a thread or allocates much.
    if let Some(code) = skeg_runtime::run_helper(std::env::args_os()) {
        std::process::exit(code);
    }
    let cli = match <cli::Cli as clap::Parser>::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as NoCommand;
            if error.use_stderr() && error.kind() != NoCommand {
                eprintln!("skeg: {}", cli::one_line(&error.to_string()));
            } else {
                let _ = error.print();
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, also where a parser below drew its input.
            let text = format!("{error:#}");
            eprintln!("skeg: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
            let user = error.downcast_ref::<UserError>().is_some();
            ExitCode::from(if user { 2 } else { 1 })
        }
    }
}
