# A GKE cluster whose GPU nodes come and go. The store is on Amazon S3, which the pods reach by their own identity: see
# infra/README.md for why it is not on Google's storage.

terraform {
  required_version = ">= 1.9, < 2.0"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "6.25.0"
    }
    google = {
      source  = "hashicorp/google"
      version = "6.50.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

provider "aws" {
  region = var.store_region
  default_tags {
    tags = { project = var.name }
  }
}

module "store" {
  source           = "../store"
  bucket           = var.bucket
  prefix           = var.prefix
  stores           = var.stores
  checkpoint_days  = var.checkpoint_days
  issuer           = "https://container.googleapis.com/v1/${google_container_cluster.main.id}"
  namespace        = var.namespace
  service_accounts = var.service_accounts
  force_destroy    = var.force_destroy
}

resource "google_artifact_registry_repository" "image" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  docker_config {
    immutable_tags = true
  }
  depends_on = [google_project_service.used]
}

output "store" {
  description = "What `--store` takes; goes into overlays/gke/job."
  value       = module.store.url
}

output "role_arn" {
  description = "AWS_ROLE_ARN in overlays/gke."
  value       = module.store.role_arn
}

output "region" {
  description = "AWS_DEFAULT_REGION in overlays/gke: the region of the bucket."
  value       = var.store_region
}

output "repository" {
  description = "Where the image goes; newName in overlays/gke/cluster."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${var.name}/${var.name}"
}
