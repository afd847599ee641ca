#!/usr/bin/env bash
# Builds both images where no Docker engine is, and plays a federation of containers: `make images-check`.
#
# As root, on Debian, with buildah and debootstrap (apt-get install --no-install-recommends buildah debootstrap).
# It takes about 20 minutes on 2 cores and 40 GB of disk, all in one folder that is removed at the end.
#
#   IMAGES_FOLDER    that folder; a new temporary one if not given
#   IMAGES_KEEP      if set, the images stay there for another try: what has not changed is not built again
#   IMAGES_PIP_CONF  pip.conf of this network's package registry, if it needs one
#   IMAGES_UV_TOML   uv.toml of the same
#   SSL_CERT_FILE    the authorities that this network's TLS needs, if it needs its own
set -euo pipefail

source=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$source/pyproject.toml")
suite=bookworm
sites=(alpha beta gamma)

die() { echo "images-check: $*" >&2; exit 1; }
say() { echo "== $(date +%H:%M:%S) $*"; }

[[ $(id -u) == 0 ]] || die "run it as root: buildah's chroot isolation and debootstrap need that"
for tool in buildah debootstrap; do
  command -v "$tool" > /dev/null || die "$tool is missing: apt-get install --no-install-recommends $tool"
done

work=${IMAGES_FOLDER:-$(mktemp -d)}
mkdir -p "$work"/{root,runroot,tmp}
export TMPDIR=$work/tmp # for buildah, which else fills /var/tmp
services=()             # process ids of what runs in the background

build_tool() { buildah --root "$work/root" --runroot "$work/runroot" --storage-driver overlay "$@"; }

# The process of AISEEME below a `buildah run`: signals to buildah itself do not reach it.
inner() {
  local pid=$1
  while [[ $(< "/proc/$pid/comm") != aiseeme* ]]; do pid=$(pgrep --parent "$pid" | head -n 1) || return 1; done
  echo "$pid"
}

clean() {
  local pid inside
  for pid in ${services[@]+"${services[@]}"}; do
    if inside=$(inner "$pid" 2> /dev/null); then kill -TERM "$inside"; fi
    wait "$pid" || echo "images-check: a container ended with exit code $?" >&2
  done
  local name
  for name in coordinator "${sites[@]}"; do
    if [[ -e $work/$name.root ]]; then umount "$(< "$work/$name.root")/run"; fi
    rm -f "$work/$name.root"
    build_tool rm "$name" > /dev/null 2>&1 || true
  done
  rm -rf "$work/volumes" "$work/tmp"
  if [[ -z ${IMAGES_KEEP:-} ]]; then
    build_tool rmi --all --force > /dev/null 2>&1 || true
    umount "$work/root/overlay" 2> /dev/null || true
    rm -rf "$work/root" "$work/runroot" "$work/base"
    rmdir --ignore-fail-on-non-empty "$work"
  fi
}
trap clean EXIT

base() { # what python:3.11-slim-bookworm is for those who have a registry of images
  build_tool inspect --type image localhost/aiseeme-base > /dev/null 2>&1 && return
  say "a base image with debootstrap"
  local mirror container
  # shellcheck disable=SC2016  # apt-get fills it in
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $suite" \
    | head -n 1)
  [[ -n $mirror ]] || die "apt-get knows no mirror of Debian $suite: run apt-get update"
  rm -rf "$work/base"
  debootstrap --variant=minbase --include=ca-certificates,python3.11,python3.11-venv,python3-venv \
    "$suite" "$work/base" "$mirror" > "$work/debootstrap.log"
  rm -rf "$work"/base/var/{cache/apt/archives,lib/apt/lists}/* "$work/debootstrap.log"
  container=$(build_tool from scratch)
  build_tool copy --quiet "$container" "$work/base" / > /dev/null
  build_tool commit --quiet --rm "$container" localhost/aiseeme-base > /dev/null
  rm -rf "$work/base"
}

image() { # role
  say "the image of the $1"
  local secrets=()
  [[ -n ${IMAGES_PIP_CONF:-} ]] && secrets+=(--secret "id=pip.conf,src=$IMAGES_PIP_CONF")
  [[ -n ${IMAGES_UV_TOML:-} ]] && secrets+=(--secret "id=uv.toml,src=$IMAGES_UV_TOML")
  [[ -n ${SSL_CERT_FILE:-} ]] && secrets+=(--secret "id=ca,src=$SSL_CERT_FILE")
  build_tool bud --quiet --isolation chroot --layers --format docker --build-arg BASE_IMAGE=localhost/aiseeme-base \
    ${secrets[@]+"${secrets[@]}"} --file "$source/docker/$1.Dockerfile" --tag "localhost/aiseeme-$1:$version" "$source"
}

container() { # name, role: made, and its root file system mounted read-only as in the compose files
  local root
  build_tool from --name "$1" "localhost/aiseeme-$2:$version" > /dev/null
  root=$(build_tool mount "$1")
  mount -t tmpfs -o mode=755,size=1m tmpfs "$root/run" # buildah itself writes there; the container's user cannot
  echo "$root" > "$work/$1.root"
  mount -o remount,ro "$root"
  install --directory --owner 10001 --group 10001 --mode 0700 "$work/volumes/$1"
}

inside() { # name, command...: with the volumes of compose.yaml, as the image's user, without any capability
  local name=$1
  shift
  build_tool run --isolation chroot --cap-drop all --mount type=tmpfs,destination=/tmp \
    --volume "$work/volumes/$name:/var/lib/aiseeme" --volume "$work/volumes/letters:/letters" \
    --volume "$work/volumes/images:/images" "$name" -- "$@" 2>&1
}

serve() { # name, command...: in the background
  inside "$@" > "$work/volumes/$1.log" &
  services+=($!)
}

until_healthy() { # name, health check...
  local left=120
  until inside "$@" > "$work/volumes/health.log"; do
    ((left-- > 0)) || { cat "$work/volumes/$1.log" "$work/volumes/health.log"; die "$1 did not become healthy"; }
    sleep 1
  done
}

stop() { # process id of the background, name
  local began=$SECONDS inside code=0
  inside=$(inner "$1")
  kill -TERM "$inside"
  wait "$1" || code=$?
  ((code == 0)) || die "$2 ended with exit code $code"
  say "$2 stopped after $((SECONDS - began)) s"
}

began=$SECONDS
base
image server
image client
build_tool images --format '{{.Name}} {{.Size}}' --filter reference='localhost/aiseeme-*'

say "what is in them"
for name in letters images; do install --directory --owner 10001 --group 10001 "$work/volumes/$name"; done
container coordinator server
for site in "${sites[@]}"; do container "$site" client; done
inside coordinator aiseeme doctor
inside coordinator aiseeme config check skin-small
inside alpha aiseeme-site --help
# shellcheck disable=SC2016  # for the shell inside
inside alpha sh -c 'id; for path in /anywhere /opt/aiseeme/anywhere /run/anywhere; do
    if touch $path 2> /dev/null; then echo "$path can be written"; exit 1; fi; done
  for tool in uv pip pip3 gcc; do if command -v $tool; then exit 1; fi; done
  for folder in /opt/uv /opt/built /build /root/.cache; do if [ -e $folder ]; then echo "$folder is there"; exit 1; fi; done'

say "a federation is made, and ${#sites[@]} sites join it"
port=$(inside coordinator python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
inside coordinator aiseeme init /var/lib/aiseeme/federation --hostname localhost --port "$port" --listen 127.0.0.1
inside alpha aiseeme-site phantom /images --sites 3 --images 40
number=0
for site in "${sites[@]}"; do
  number=$((number + 1))
  inside coordinator aiseeme site add "$site" --kit --out "/letters/$site.kit.json"
  inside "$site" aiseeme-site join "/letters/$site.kit.json"
  inside "$site" aiseeme-site scan "/images/phantom-dermoscopy-$number" --size 32 --json > /dev/null
done

say "coordinator and sites run"
serve coordinator aiseeme serve
until_healthy coordinator gateway-health
for site in "${sites[@]}"; do serve "$site" aiseeme-site run --cpu; done
for site in "${sites[@]}"; do until_healthy "$site" aiseeme-site status; done
inside alpha aiseeme-site check
inside coordinator aiseeme doctor

say "a run"
install --mode 0644 "$source/scripts/loopback.toml" "$work/volumes/letters/loopback.toml"
inside coordinator aiseeme launch /letters/loopback.toml || { cat "$work"/volumes/*.log; die "the run failed"; }
run=$(basename "$(dirname "$work"/volumes/coordinator/federation/runs/*/results.json)")
inside coordinator aiseeme verify "$run"
inside alpha aiseeme-site ledger verify

for index in "${!sites[@]}"; do stop "${services[index + 1]}" "${sites[index]}"; done
stop "${services[0]}" coordinator
services=()
say "all went well, in $(((SECONDS - began) / 60)) minutes"
