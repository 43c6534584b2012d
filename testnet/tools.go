//go:build tools

// Package tools names the one program that this module is for, so that Go's own tools keep its requirement.
package tools

import _ "github.com/ethereum/go-ethereum/cmd/geth"
