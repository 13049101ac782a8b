//! Values that only functions see into.

use std::net::IpAddr;
use std::sync::Arc;

use crate::library::authz::{Authorizer, Decision, PathCheck, ResourceCheck, UserChecks};
use crate::library::format::Format;
use crate::library::image::Image;
use crate::library::ip::Cidr;
use crate::library::quantity::Quantity;
use crate::library::semver::Semver;
use crate::library::url::Url;

/// A value of a library.
#[derive(Clone, Debug)]
pub enum Opaque {
    Url(Arc<Url>),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(Cidr),
    Semver(Arc<Semver>),
    Image(Arc<Image>),
    Format(&'static Format),
    Authorizer(UserChecks),
    PathCheck(Arc<PathCheck>),
    /// A [`ResourceCheck`] whose resource is not named yet.
    GroupCheck(Arc<ResourceCheck>),
    ResourceCheck(Arc<ResourceCheck>),
    Decision(Arc<Decision>),
}

impl Opaque {
    /// The variable `authorizer`: checks as the user that sent the request.
    pub fn authorizer(authorizer: Arc<dyn Authorizer>) -> Self {
        Self::Authorizer(UserChecks { authorizer, service_account: None })
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Url(_) => "kubernetes.URL",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Image(_) => "kubernetes.Image",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorizer(_) => "kubernetes.authorization.Authorizer",
            Self::PathCheck(_) => "kubernetes.authorization.PathCheck",
            Self::GroupCheck(_) => "kubernetes.authorization.GroupCheck",
            Self::ResourceCheck(_) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Ip(IpAddr::V4(_)) => 4,
            Self::Ip(IpAddr::V6(_)) => 16,
            Self::Cidr(cidr) => u64::from(cidr.prefix).div_ceil(8),
            _ => 1,
        }
    }

    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Url(a), Self::Url(b)) => a.text == b.text,
            (Self::Quantity(a), Self::Quantity(b)) => a.compare(b).is_eq(),
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => a.compare(b).is_eq(),
            (Self::Image(a), Self::Image(b)) => a == b,
            (Self::Format(a), Self::Format(b)) => a.name == b.name,
            _ => false,
        }
    }
}
