# An EKS cluster whose GPU nodes come and go, and the bucket and role of the store.

terraform {
  required_version = ">= 1.9, < 2.0"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "6.25.0"
    }
  }
}

provider "aws" {
  region = var.region
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
  issuer           = aws_eks_cluster.main.identity[0].oidc[0].issuer
  namespace        = var.namespace
  service_accounts = var.service_accounts
  force_destroy    = var.force_destroy
}

resource "aws_ecr_repository" "image" {
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"
  force_delete         = true
  image_scanning_configuration {
    scan_on_push = true
  }
}

output "store" {
  description = "What `--store` takes; goes into overlays/eks/job."
  value       = module.store.url
}

output "role_arn" {
  description = "AWS_ROLE_ARN in overlays/eks."
  value       = module.store.role_arn
}

output "region" {
  description = "AWS_DEFAULT_REGION in overlays/eks."
  value       = var.region
}

output "repository" {
  description = "Where the image goes; newName in overlays/eks/cluster."
  value       = aws_ecr_repository.image.repository_url
}

output "autoscaler_role_arn" {
  description = "The role of the cluster autoscaler, for its Helm chart."
  value       = aws_iam_role.autoscaler.arn
}
