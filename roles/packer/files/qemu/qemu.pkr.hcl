# Builds a disk image from another one: boots an overlay of it in QEMU, runs a playbook in it over SSH, compacts the result.
# By hand: packer build -var-file=VALUES.json THIS_FOLDER

variable "name" {
  type        = string
  description = "Name of the image; the result is OUTPUT_DIRECTORY/NAME.qcow2."
}

variable "output_directory" {
  type        = string
  description = "Folder of the result. It must not exist yet."
}

variable "base_disk" {
  type        = string
  description = "Disk image (qcow2) to start from. It is read while the image is built, never written to."
}

variable "base_disk_checksum" {
  type        = string
  description = "Checksum of the base disk, such as sha256:0123..."
}

variable "disk_size" {
  type        = string
  description = "Virtual size of the result, such as 10G."
}

variable "accelerator" {
  type        = string
  description = "kvm or tcg."
}

variable "cpu_model" {
  type        = string
  description = "CPU model of QEMU, such as host, max or qemu64."
}

variable "cpus" {
  type = number
}

variable "memory" {
  type        = number
  description = "MiB."
}

variable "seed_files" {
  type        = list(string)
  description = "The files user-data and meta-data of the NoCloud seed."
}

variable "ssh_username" {
  type        = string
  description = "Build user that the seed creates and the shutdown command removes."
}

variable "ssh_private_key_file" {
  type = string
}

variable "ssh_timeout" {
  type        = string
  description = "How long to wait for SSH, such as 600s."
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

variable "shutdown_command" {
  type        = string
  description = "Ends the guest's last process; what the clean-up left for the end happens here."
}

variable "shutdown_timeout" {
  type = string
}

variable "console_log" {
  type        = string
  description = "File that gets the guest's serial console."
}

source "qemu" "image" {
  vm_name          = "${var.name}.qcow2"
  output_directory = var.output_directory

  # The base disk lies below the disk of the machine; the conversion at the end makes one image of both.
  disk_image       = true
  use_backing_file = true

  iso_url      = var.base_disk
  iso_checksum = var.base_disk_checksum
  disk_size    = var.disk_size
  format       = "qcow2"

  accelerator      = var.accelerator
  cpus             = var.cpus
  memory           = var.memory
  headless         = true
  disk_interface   = "virtio"
  net_device       = "virtio-net"
  disk_cache       = "unsafe"
  disk_discard     = "unmap"
  disk_compression = true
  qemu_img_args {
    # A qcow2 gives back whole clusters only, and those of the result have 64 KiB: what a deleted file had beside others in one of
    # them would stay. The disk of the machine therefore has the block size of ext4.
    create  = ["-F", "qcow2", "-o", "cluster_size=4096"]
    convert = ["-m", "8", "-W", "-o", "compression_type=zstd"]
  }
  qemuargs = [
    ["-cpu", var.cpu_model],
    ["-machine", "type=q35,accel=${var.accelerator}"],
    ["-serial", "file:${var.console_log}"],
    # Naming one -device replaces Packer's own, so the network card stands here again.
    ["-device", "virtio-net,netdev=user.0"],
    ["-device", "virtio-rng-pci"],
  ]

  cd_files = var.seed_files
  cd_label = "cidata"

  # The guest logs in by itself: nothing is typed, so nothing has to be waited for.
  boot_wait = "-1s"

  communicator              = "ssh"
  ssh_username              = var.ssh_username
  ssh_private_key_file      = var.ssh_private_key_file
  ssh_clear_authorized_keys = false
  ssh_timeout               = var.ssh_timeout
  ssh_handshake_attempts    = 1000

  shutdown_command = var.shutdown_command
  shutdown_timeout = var.shutdown_timeout
}

build {
  sources = ["source.qemu.image"]

  provisioner "ansible" {
    playbook_file = var.playbook
    user          = var.ssh_username
    # Packer's own SSH proxy makes Ansible several times slower and offers old host keys only.
    use_proxy        = false
    extra_arguments  = var.ansible_arguments
    ansible_env_vars = var.ansible_environment
  }
}
