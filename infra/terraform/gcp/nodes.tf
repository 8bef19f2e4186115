# Pools of nodes, most of them empty: GKE adds nodes for pods that wait and removes empty ones.

resource "google_service_account" "node" {
  account_id   = "${var.name}-node"
  display_name = "Nodes of ${var.name}: logs, metrics and images, nothing else"
}

resource "google_project_iam_member" "node" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])
  project  = var.project
  role     = each.key
  member   = google_service_account.node.member
}

resource "google_container_node_pool" "pool" {
  for_each = var.pools

  name     = each.key
  cluster  = google_container_cluster.main.id
  location = var.region
  # The head's volume lies in one zone, so its nodes do too.
  node_locations = each.key == "head" ? [var.zones[0]] : var.zones

  initial_node_count = each.value.min

  autoscaling {
    total_min_node_count = each.value.min
    total_max_node_count = each.value.max
    location_policy      = each.value.spot ? "ANY" : "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = each.value.machine
    spot            = each.value.spot
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels          = { "dass/pool" = each.key }
    # The image of dass takes about 8 GB, /tmp up to 40.
    disk_size_gb = 120
    disk_type    = "pd-balanced"

    dynamic "guest_accelerator" {
      for_each = each.value.gpu == null ? [] : [each.value.gpu]
      content {
        type  = guest_accelerator.value
        count = 1
        gpu_driver_installation_config {
          gpu_driver_version = "LATEST"
        }
      }
    }

    # GKE itself taints nodes with GPUs: nvidia.com/gpu=present:NoSchedule.
    dynamic "taint" {
      for_each = each.value.spot ? ["dass/spot"] : []
      content {
        key    = taint.value
        value  = "true"
        effect = "NO_SCHEDULE"
      }
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    shielded_instance_config {
      enable_secure_boot = each.value.gpu == null # a GPU's driver is a kernel module of its own
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }
}
