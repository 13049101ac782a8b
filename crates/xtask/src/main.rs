//! The developer's commands, behind the thin Makefile: `cargo xtask <command>`.

mod codegen;
mod coverage;
mod demo;
mod fuzz;
mod guest;
mod host;
mod images;
mod setup;
mod test;
mod wire;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Skeg", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need: Debian packages and kubectl.
    Setup,
    /// Build the container images of the demo and the tests from Debian packages.
    Images,
    /// Start a cluster, run examples/deployment.yaml on it and leave it running.
    Demo,
    /// Run everything: lint, unit, property, simulation, host and end-to-end tests.
    Test {
        /// Only the tests of Rust crates: no lint, no containers.
        #[arg(long)]
        unit: bool,
        /// Only the end-to-end suite, against the release binary.
        #[arg(long)]
        e2e: bool,
        /// Only end-to-end cases whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Check that 300 Pods and 30 kills of the server leave nothing behind.
    Leakcheck,
    /// Build the guest of the cgroup v2 test.
    Guest,
    /// Measure everything that has a target; takes about three minutes.
    Bench {
        /// What the API does under load instead, in about two minutes, or the rates of requests alone.
        #[arg(value_parser = ["api", "rates"])]
        what: Option<String>,
        /// One part of `api` alone.
        #[arg(value_parser = ["writes", "watchers", "store", "definitions"])]
        part: Option<String>,
    },
    /// Look for inputs that break what the readers of foreign bytes promise, guided by coverage.
    Fuzz {
        /// One target alone.
        target: Option<String>,
        /// How long each is looked at.
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
    },
    /// Check that each row of COMPAT.md names a test that ran and passed.
    Coverage {
        /// Kubernetes' conformance behaviours instead, against the `conformance.yaml` in
        /// `SKEG_SPEC_DIR` and the table `tests/conformance.tsv`.
        #[arg(long)]
        spec: bool,
    },
    /// Regenerate the schema tables from the published API definitions.
    Codegen {
        /// `--from FILE`: read the definitions from a file instead of fetching them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Setup => setup::setup(),
        Command::Images => images::build_all().map(|_| ()),
        Command::Demo => demo::demo(),
        Command::Test { unit, e2e, only } => test::test(unit, e2e, only.as_deref()),
        Command::Leakcheck => test::test(false, true, Some("nothing_leaks")),
        Command::Guest => guest::prepare(&host::target().join("release/skeg")).map(|_| ()),
        Command::Bench { what, part } => test::bench(what.into_iter().chain(part)),
        Command::Fuzz { target, minutes } => fuzz::fuzz(target.as_deref(), minutes),
        Command::Coverage { spec: false } => coverage::coverage(),
        Command::Coverage { spec: true } => coverage::spec(),
        Command::Codegen { args } => codegen::codegen(&args),
    }
}
