//! The command line.

use crate::{down, image, instance::Instance, refuse, settings, status, up};
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `/version` says of this server.
pub const KUBERNETES_VERSION: &str = "v1.36.0";

#[derive(Parser)]
#[command(
    name = "skeg",

    version = concat!(env!("CARGO_PKG_VERSION"), " (Kubernetes v1.36.0)"),
    about = "Kubernetes in one small binary: start a cluster with `skeg up`, use it with kubectl",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Where the cluster keeps everything it must remember
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/skeg")]
    data_dir: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the cluster
    Up(Up),
    /// Stop the cluster; its Pods keep running
    Down {
        /// Also remove the Pods, links, mounts, cgroups, nftables rules and all data
        #[arg(long)]
        purge: bool,
    },
    /// Show whether the cluster runs and is healthy
    Status,
    /// Print the administrator's kubeconfig
    Kubeconfig,
    /// Import, list, pull and remove container images
    #[command(subcommand)]
    Image(Image),
    /// Print the version
    Version,
}

#[derive(Args, Clone, Debug, Default)]
pub struct Up {
    /// Where the API listens [default: 127.0.0.1:6443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Addresses of Pods [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDR", value_parser = settings::range)]
    pub pod_cidr: Option<ipnet::Ipv4Net>,
    /// Addresses of Services [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR", value_parser = settings::range)]
    pub service_cidr: Option<ipnet::Ipv4Net>,
    /// Mirrors and credentials of image registries (registries.yaml)
    #[arg(long, value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// Settings as YAML; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Pods that the node takes at most [default: 110]
    #[arg(long, value_name = "N", value_parser = settings::pods, allow_negative_numbers = true)]
    pub max_pods: Option<u32>,
    /// Run in the background; return once the node is Ready
    #[arg(long)]
    pub detach: bool,
    /// Log lines of JSON on standard error instead of text in <DATA_DIR>/skeg.log
    #[arg(long, value_name = "FORMAT", value_parser = ["json"], conflicts_with = "detach")]
    pub log: Option<String>,
}

#[derive(Subcommand)]
pub enum Image {
    /// Import an OCI or docker archive, or an OCI layout directory
    ///
    /// An imported reference is pinned: it is used without asking a registry, whatever the pull
    /// policy, until it is removed.
    Import {
        /// The archive or directory
        path: PathBuf,
        /// The reference to give it, where the archive names none
        #[arg(long, value_name = "REFERENCE")]
        name: Option<String>,
    },
    /// List the images that are present
    List,
    /// Pull an image from its registry
    Pull { reference: String },
    /// Remove an image reference, and the image with its last one
    Remove { reference: String },
}

/// The parser's error as one line: what is wrong, what was probably meant, where help is.
pub fn one_line(error: &str) -> String {
    let said = error
        .lines()
        .map(|line| line.trim().trim_start_matches("error: ").trim_start_matches("tip: "))
        .filter(|line| !line.is_empty() && !line.starts_with("Usage:") && !line.starts_with("For more"));
    format!("{}; see `skeg --help`", said.collect::<Vec<_>>().join("; "))
}

pub fn run(cli: Cli) -> Result<()> {
    let instance = Instance::at(&cli.data_dir)?;
    if !matches!(cli.command, Command::Version) {
        if !nix::unistd::geteuid().is_root() {
            refuse!("a cluster's namespaces, mounts, cgroups and data belong to root: run this as root");
        }
        instance.check_ours()?;
    }
    match cli.command {
        Command::Up(flags) => {
            let settings = settings::resolve(&flags, &instance)?;
            if flags.detach {
                crate::detach::start(&instance)
            } else {
                up::up(&instance, settings, flags.log.is_some())
            }
        }
        Command::Down { purge } => down::down(&instance, purge),
        Command::Status => status::status(&instance),
        Command::Kubeconfig => {
            crate::print(&instance.kubeconfig()?);
            Ok(())
        }
        Command::Image(command) => image::image(&instance, command),
        Command::Version => {
            crate::say!("skeg {} (Kubernetes {KUBERNETES_VERSION})", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}
