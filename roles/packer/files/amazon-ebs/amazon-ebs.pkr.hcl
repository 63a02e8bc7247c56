# Builds an AMI in EC2: starts an instance from the newest AMI that a filter finds, runs a playbook in it over SSH, makes
# an image of its volume. The volume is encrypted from the start, so there is never an AMI in plain text.
# By hand: packer build -var-file=VALUES.json THIS_FOLDER
# Credentials come from the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...) or from the role of the instance.

variable "ami_name" {
  type        = string
  description = "Name of the AMI; there must be none of this name yet."
}

variable "ami_description" {
  type    = string
  default = ""
}

variable "region" {
  type = string
}

variable "profile" {
  type        = string
  description = "Profile of the AWS configuration; empty: the environment decides."
  default     = ""
}

variable "endpoint_ec2" {
  type        = string
  description = "URL of EC2's API where it is not AWS's public one, such as that of a VPC endpoint."
  default     = ""
}

variable "source_ami_owner" {
  type        = string
  description = "Account that owns the AMI to start from: a number, or amazon."
}

variable "source_ami_name" {
  type        = string
  description = "Its name, with * and ?; the newest one counts."
}

variable "root_device" {
  type        = string
  description = "Root device of that AMI: another name would be a second volume."
}

variable "volume_size" {
  type        = number
  description = "GiB of the root volume."
}

variable "kms_key_id" {
  type        = string
  description = "Id, ARN or alias of the KMS key; empty: the account's default for EBS."
  default     = ""
}

variable "instance_type" {
  type = string
}

variable "spot" {
  type        = bool
  description = "Take a spot instance, at most at the price of an ordinary one."
  default     = false
}

variable "subnet_id" {
  type        = string
  description = "Empty: the account's default VPC."
  default     = ""
}

variable "public_ip" {
  type        = bool
  description = "Ask for a public address; without, the subnet decides. Needs a subnet."
  default     = false
}

variable "security_group_ids" {
  type        = list(string)
  description = "Existing security groups; none: a temporary one that lets ssh_source_cidrs in."
  default     = []
}

variable "ssh_source_cidrs" {
  type        = list(string)
  description = "Who may reach SSH during the build, such as [\"192.0.2.7/32\"]."

  # Packer takes an empty list for 0.0.0.0/0.
  validation {
    condition     = length(var.ssh_source_cidrs) > 0
    error_message = "Say who may reach SSH during the build, such as [\"192.0.2.7/32\"]."
  }
  validation {
    condition     = length([for cidr in var.ssh_source_cidrs : cidr if split("/", cidr)[1] < 8]) == 0
    error_message = "The whole Internet, or half of it, must not reach SSH during the build."
  }
}

variable "ssh_interface" {
  type        = string
  description = "Address of the instance that Packer connects to: public_ip or private_ip."
  default     = "public_ip"
}

variable "ssh_host" {
  type        = string
  description = "Where SSH of the instance is found instead, if a tunnel leads there."
  default     = ""
}

variable "ssh_port" {
  type    = number
  default = 22
}

variable "ssh_username" {
  type        = string
  description = "Build user that user_data_file creates and the finish command removes."
}

variable "ssh_private_key_file" {
  type = string
}

variable "ssh_timeout" {
  type        = string
  description = "How long to wait for SSH, such as 300s."
  default     = "600s"
}

variable "user_data_file" {
  type        = string
  description = "Cloud-init's user-data for the instance."
}

variable "iam_instance_profile" {
  type    = string
  default = ""
}

variable "playbook" {
  type        = string
  description = "The playbook that provisions the image."
}

variable "ansible_arguments" {
  type        = list(string)
  description = "More arguments of ansible-playbook."
}

variable "ansible_environment" {
  type        = list(string)
  description = "Environment of ansible-playbook, NAME=VALUE each."
}

variable "finish_command" {
  type        = string
  description = "Last command in the instance. It powers it off, but not a spot instance, which would be gone."
}

variable "tags" {
  type        = map(string)
  description = "Tags of the AMI, its snapshot, the instance and its volume."
  default     = {}
}

source "amazon-ebs" "image" {
  ami_name        = var.ami_name
  ami_description = var.ami_description

  region                 = var.region
  profile                = var.profile
  custom_endpoint_ec2    = var.endpoint_ec2
  skip_region_validation = var.endpoint_ec2 != ""

  source_ami_filter {
    owners      = [var.source_ami_owner]
    most_recent = true
    filters = {
      name                = var.source_ami_name
      architecture        = "x86_64"
      virtualization-type = "hvm"
      state               = "available"
    }
  }

  instance_type = var.instance_type
  spot_price    = var.spot ? "auto" : ""
  # The finish command ends the instance, so that nothing writes to its disk after the clean-up.
  disable_stop_instance = true

  launch_block_device_mappings {
    device_name           = var.root_device
    volume_type           = "gp3"
    volume_size           = var.volume_size
    iops                  = 3000
    throughput            = 125
    encrypted             = true
    kms_key_id            = var.kms_key_id
    delete_on_termination = true
  }

  subnet_id                             = var.subnet_id
  associate_public_ip_address           = var.public_ip
  security_group_ids                    = var.security_group_ids
  temporary_security_group_source_cidrs = var.ssh_source_cidrs
  iam_instance_profile                  = var.iam_instance_profile
  user_data_file                        = var.user_data_file

  # Packer 1.6.6 does not know what follows; for 1.7 and later the marks are removed.
  #1.7+ imds_support = "v2.0"
  #1.7+ metadata_options {
  #1.7+   http_endpoint               = "enabled"
  #1.7+   http_tokens                 = "required"
  #1.7+   http_put_response_hop_limit = 1
  #1.7+ }
  # Needs the plugin amazon after 1.8.2, and an instance type that has it.
  #nested+ enable_nested_virtualization = true

  communicator              = "ssh"
  ssh_username              = var.ssh_username
  ssh_private_key_file      = var.ssh_private_key_file
  ssh_interface             = var.ssh_interface
  ssh_host                  = var.ssh_host
  ssh_port                  = var.ssh_port
  ssh_clear_authorized_keys = false
  ssh_timeout               = var.ssh_timeout
  ssh_handshake_attempts    = 1000

  run_tags        = merge(var.tags, { Name = "build of ${var.ami_name}" })
  run_volume_tags = merge(var.tags, { Name = "build of ${var.ami_name}" })
  snapshot_tags   = merge(var.tags, { Name = var.ami_name })
  tags = merge(var.tags, {
    Name                          = var.ami_name
    "goldsmith.images:source-ami" = "{{ .SourceAMI }}"
  })
}

build {
  sources = ["source.amazon-ebs.image"]

  provisioner "ansible" {
    playbook_file = var.playbook
    user          = var.ssh_username
    # Packer's own SSH proxy makes Ansible several times slower and offers old host keys only.
    use_proxy        = false
    extra_arguments  = var.ansible_arguments
    ansible_env_vars = var.ansible_environment
  }

  provisioner "shell" {
    inline            = ["true"]
    execute_command   = var.finish_command
    expect_disconnect = true
    # There is nobody left who could remove the script.
    skip_clean = true
  }
}
