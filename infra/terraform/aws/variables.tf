variable "region" {
  description = "AWS region, such as eu-central-1; look where the GPUs are that you want."
  type        = string
  default     = "eu-central-1"
}

variable "name" {
  description = "Name of the cluster, the image's repository and the tag on everything."
  type        = string
  default     = "dass"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name must be 2 to 21 lower-case letters, digits and hyphens; choose another."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes; KubeRay's operator and the node images must support it."
  type        = string
  default     = "1.33"
  validation {
    condition     = can(regex("^1\\.(3[3-9])$", var.kubernetes_version))
    error_message = "kubernetes_version must be 1.33 or later, which the manifests are checked against; set it to 1.33."
  }
}

variable "api_cidrs" {
  description = "Networks that may reach the Kubernetes API, such as [\"203.0.113.7/32\"]: your own."
  type        = list(string)
  validation {
    condition     = length(var.api_cidrs) > 0 && !contains(var.api_cidrs, "0.0.0.0/0")
    error_message = "api_cidrs must name your networks and not the whole world; give your address as a /32."
  }
}

variable "bucket" {
  description = "Name of the store's bucket, which will be made; unique in the whole world."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,50}[a-z0-9]$", var.bucket))
    error_message = "bucket must be 3 to 52 lower-case letters, digits and hyphens; choose another."
  }
}

variable "prefix" {
  description = "Where in the bucket the store lies, such as tiny10; the pods reach nothing else."
  type        = string
  default     = "tiny10"
  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.prefix))
    error_message = "prefix must be names between single slashes, without one at either end; for example tiny10."
  }
}

variable "stores" {
  description = "Stores below the prefix, such as first/, whose old checkpoints are removed; empty is the prefix itself."
  type        = list(string)
  default     = ["", "first/"]
  validation {
    condition     = alltrue([for store in var.stores : can(regex("^([A-Za-z0-9_-]+/)*$", store))])
    error_message = "stores must be names, each with a slash behind it, or empty; for example first/."
  }
}

variable "checkpoint_days" {
  description = "Days after which a checkpoint is removed that no run has overwritten."
  type        = number
  default     = 28
  validation {
    condition     = var.checkpoint_days >= 14
    error_message = "checkpoint_days must be >= 14, twice the deadline of a job; set it to 28."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` may delete the bucket with all its records."
  type        = bool
  default     = false
}

variable "namespace" {
  description = "Namespace of infra/kuberay/base."
  type        = string
  default     = "dass"
}

variable "service_accounts" {
  description = "Service accounts of infra/kuberay/base whose pods may use the store."
  type        = list(string)
  default     = ["dass-head", "dass-worker"]
}

# Each pool is one worker group of infra/kuberay/cluster. Several types of machines make spot easier to get; they must
# offer at least 7 CPUs, 28 GiB of memory and, for gpu- pools, one GPU of about the same speed.
variable "pools" {
  description = "Pools of nodes by name: machine types, spot or not, and how many at most."
  type = map(object({
    machines = list(string)
    spot     = bool
    min      = number
    max      = number
  }))
  default = {
    head           = { machines = ["m7i.2xlarge"], spot = false, min = 1, max = 2 }
    drivers        = { machines = ["m7i.2xlarge"], spot = false, min = 0, max = 2 }
    cpu            = { machines = ["m7i.2xlarge", "m6i.2xlarge"], spot = false, min = 0, max = 4 }
    gpu-small-spot = { machines = ["g6.2xlarge", "g5.2xlarge"], spot = true, min = 0, max = 16 }
    gpu-small      = { machines = ["g6.2xlarge"], spot = false, min = 0, max = 8 }
    gpu-large-spot = { machines = ["g6e.2xlarge"], spot = true, min = 0, max = 8 }
    gpu-large      = { machines = ["g6e.2xlarge"], spot = false, min = 0, max = 4 }
  }
  validation {
    condition     = !var.pools["drivers"].spot
    error_message = "the pool drivers must be on demand: a lost driver takes its lanes along; set spot = false."
  }
  validation {
    condition     = !var.pools["head"].spot && var.pools["head"].min >= 1
    error_message = "the pool head must be on demand with at least one node; set spot = false and min = 1."
  }
  validation {
    condition     = alltrue([for name, pool in var.pools : pool.spot == endswith(name, "-spot")])
    error_message = "a pool must be named -spot when it is one, and only then; rename it here and in the manifests."
  }
}
