//! Pod addresses, links, nftables and DNS; fed plain tables. Knows nothing of Kubernetes objects.
