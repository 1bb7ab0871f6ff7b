#!/usr/bin/env bash
# Checks that a version is ready to be tagged, and prints the commands that publish it. It changes
# nothing.
#   scripts/release.sh          all checks; a quarter of an hour
#   scripts/release.sh --quick  only what takes seconds: version, changelog, git, address
set -euo pipefail
cd "$(dirname "$0")/.."

problems=()
problem() { problems+=("$1"); echo "NOT READY: $1" >&2; }
say() { echo "== $1"; }

case "${1:-}" in
"" | --quick) ;;
*) echo "usage: scripts/release.sh [--quick]" >&2; exit 2 ;;
esac

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' dafast/_version.py)
say "version $version"
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] ||
    problem "dafast/_version.py has '$version': set a version such as 0.1.0"
# The lines below the heading of a version, without those of other versions.
section() { awk -v name="$1" '/^## /{on = index($0 " ", "## " name " ") == 1} on' CHANGELOG.md; }
lines=$(section "$version") # in a variable: a pipe that grep closes early would fail
heading="^## [^ ]+ - [0-9]{4}-[0-9]{2}-[0-9]{2}"$'\n'
if ! [[ $lines$'\n' =~ $heading ]]; then
    problem "CHANGELOG.md has no heading '## $version - YYYY-MM-DD'"
elif [[ $lines != *$'\n- '* ]]; then
    problem "CHANGELOG.md says nothing about $version"
fi
if [[ $(section Unreleased) == *$'\n- '* ]]; then
    problem "CHANGELOG.md has changes under 'Unreleased': move them to $version"
fi
if git rev-parse -q --verify "refs/tags/v$version" >/dev/null; then
    problem "the tag v$version exists: set the next version in dafast/_version.py"
fi
changes=$(git status --porcelain)
[ -z "$changes" ] || problem "changes are not committed: $(head -n 3 <<<"$changes" | tr '\n' ';')"
# The package names the address of its repository; it must be the one that the tag goes to.
address=$(sed -n 's/^Source = "\(.*\)"$/\1/p' pyproject.toml)
origin=$(git remote get-url origin 2>/dev/null || true)
origin=$(sed -E 's#^(ssh://)?git@([^:/]+)[:/]#https://\2/#; s#\.git$##' <<<"$origin")
if [[ $origin == http* && $origin != "$address" ]]; then
    problem "pyproject.toml names the repository $address, but origin is $origin"
fi

if [ "${1:-}" != --quick ] && [ ${#problems[@]} = 0 ]; then
    say "wheel in a fresh environment, lint, types, documentation, tests (.ci/run)"
    .ci/run || problem ".ci/run failed"
fi

if [ ${#problems[@]} -gt 0 ]; then
    echo "${#problems[@]} problem(s): version $version is not ready" >&2
    exit 1
fi
if [ "${1:-}" = --quick ]; then
    echo "the quick checks passed; scripts/release.sh runs the others"
    exit 0
fi
echo "version $version is ready. Publish it with:"
if [[ $origin != http* ]]; then
    echo "  git remote add origin ADDRESS  # and the same ADDRESS in [project.urls] of pyproject.toml"
fi
cat <<END
  git tag -a v$version -m "dafast $version"
  git push origin v$version
.github/workflows/release.yml then builds the wheels and uploads them.
END
