# A bucket of its own for stores, and the role that lets the pods of one Kubernetes cluster use one prefix of it.

terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}

variable "bucket" {
  description = "Name of the bucket; unique in the whole world."
  type        = string
}

variable "prefix" {
  description = "Where in the bucket the store lies; the role reaches nothing else."
  type        = string
}

variable "stores" {
  description = "Stores below the prefix, such as first/, whose old checkpoints are removed; empty is the prefix itself."
  type        = list(string)
}

variable "checkpoint_days" {
  description = "Days after which a checkpoint is removed that no run has overwritten: its run is done or given up."
  type        = number
}

variable "issuer" {
  description = "Who signs the pods' tokens: the cluster's OpenID Connect issuer, an https URL."
  type        = string
}

variable "namespace" {
  description = "Namespace of the service accounts."
  type        = string
}

variable "service_accounts" {
  description = "Service accounts whose pods may use the store."
  type        = list(string)
}

variable "force_destroy" {
  description = "Whether `terraform destroy` may delete a bucket that holds objects."
  type        = bool
}

resource "aws_s3_bucket" "store" {
  bucket        = var.bucket
  force_destroy = var.force_destroy
}

# Never versioned: old versions of overwritten checkpoints would fill the bucket, no listing would show them, and on some
# servers versions undo the condition that lets a queue claim its number once. `dass` refuses a versioned bucket.
resource "aws_s3_bucket_versioning" "store" {
  bucket = aws_s3_bucket.store.id
  versioning_configuration {
    status = "Disabled"
  }
}

# Keys of S3's own: with those of KMS an ETag is no MD5, and a write could not be checked by it.
resource "aws_s3_bucket_server_side_encryption_configuration" "store" {
  bucket = aws_s3_bucket.store.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "store" {
  bucket                  = aws_s3_bucket.store.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "store" {
  bucket = aws_s3_bucket.store.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "store" {
  bucket = aws_s3_bucket.store.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "EncryptedConnectionsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.store.arn, "${aws_s3_bucket.store.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
  depends_on = [aws_s3_bucket_public_access_block.store]
}

resource "aws_s3_bucket_lifecycle_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  # A writer that is killed in the middle of a large object leaves parts that no listing shows.
  rule {
    id     = "abort-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  dynamic "rule" {
    for_each = toset(var.stores)
    content {
      id     = "expire-${var.prefix}/${rule.value}checkpoints"
      status = "Enabled"
      filter {
        prefix = "${var.prefix}/${rule.value}checkpoints/"
      }
      expiration {
        days = var.checkpoint_days
      }
    }
  }
}

# The pods prove who they are with a token that their cluster signs; no key is stored anywhere.
resource "aws_iam_openid_connect_provider" "cluster" {
  url            = var.issuer
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "store" {
  name = "${var.bucket}-store"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = aws_iam_openid_connect_provider.cluster.arn }
      Condition = {
        StringEquals = {
          "${trimprefix(var.issuer, "https://")}:aud" = "sts.amazonaws.com"
          "${trimprefix(var.issuer, "https://")}:sub" = [
            for account in var.service_accounts : "system:serviceaccount:${var.namespace}:${account}"
          ]
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "store" {
  name = "store"
  role = aws_iam_role.store.id
  policy = templatefile("${path.module}/../../iam/store-policy.json", {
    bucket = aws_s3_bucket.store.id
    prefix = var.prefix
  })
}

output "url" {
  description = "What `--store` takes."
  value       = "s3://${aws_s3_bucket.store.id}/${var.prefix}"
}

output "role_arn" {
  description = "The role of the pods: AWS_ROLE_ARN in infra/kuberay/overlays."
  value       = aws_iam_role.store.arn
}

output "provider_arn" {
  description = "The cluster's issuer, as IAM knows it."
  value       = aws_iam_openid_connect_provider.cluster.arn
}
