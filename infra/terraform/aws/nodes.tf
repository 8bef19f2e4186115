# Pools of nodes, most of them empty: the cluster autoscaler adds nodes for pods that wait and removes empty ones.

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])
  role       = aws_iam_role.node.name
  policy_arn = "arn:aws:iam::aws:policy/${each.key}"
}

resource "aws_launch_template" "node" {
  name_prefix = "${var.name}-node-"

  # Bottlerocket keeps images and emptyDirs on its second disk; the image of dass takes about 8 GB, /tmp up to 40.
  block_device_mappings {
    device_name = "/dev/xvdb"
    ebs {
      volume_size           = 120
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # One hop: what runs in a pod does not reach the node's own credentials.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
}

resource "aws_eks_node_group" "pool" {
  for_each = var.pools

  cluster_name    = aws_eks_cluster.main.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  # The head's volume lies in one zone, so its nodes do too.
  subnet_ids     = each.key == "head" ? [aws_subnet.nodes[0].id] : aws_subnet.nodes[*].id
  capacity_type  = each.value.spot ? "SPOT" : "ON_DEMAND"
  instance_types = each.value.machines
  # Its NVIDIA variant brings driver, container toolkit and device plugin.
  ami_type = startswith(each.key, "gpu-") ? "BOTTLEROCKET_x86_64_NVIDIA" : "BOTTLEROCKET_x86_64"
  labels = merge(
    { "dass/pool" = each.key },
    # The autoscaler waits for the GPU of a node that has this label, and does not add a second node meanwhile.
    startswith(each.key, "gpu-") ? { "k8s.amazonaws.com/accelerator" = "nvidia" } : {},
  )
  # Of an empty pool the autoscaler knows the machine's CPUs, memory and GPUs, and the labels and taints from here, but not
  # the disk: without this it adds no node for a pod that asks for room on it. What pods may fill of the 120 GiB above.
  tags = { "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "100Gi" }

  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  dynamic "taint" {
    for_each = startswith(each.key, "gpu-") ? ["nvidia.com/gpu"] : []
    content {
      key    = taint.value
      value  = "present"
      effect = "NO_SCHEDULE"
    }
  }

  dynamic "taint" {
    for_each = each.value.spot ? ["dass/spot"] : []
    content {
      key    = taint.value
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.network]
}

resource "aws_iam_role" "autoscaler" {
  name               = "${var.name}-autoscaler"
  assume_role_policy = local.trust["cluster-autoscaler"]
}

resource "aws_iam_role_policy" "autoscaler" {
  name = "autoscaler"
  role = aws_iam_role.autoscaler.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect = "Allow"
        Action = [
          "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances",
          "autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeScalingActivities",
          "ec2:DescribeImages", "ec2:DescribeInstanceTypes", "ec2:DescribeLaunchTemplateVersions",
          "ec2:GetInstanceTypesFromInstanceRequirements", "eks:DescribeNodegroup",
        ]
        Resource = "*"
      },
      {
        Effect    = "Allow"
        Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
        Resource  = "*"
        Condition = { StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}" = "owned" } }
      },
    ]
  })
}
