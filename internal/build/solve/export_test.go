package solve

import "github.com/moby/buildkit/solver/pb"

// Load is load without a policy.
func Load(def *pb.Definition) (*Graph, error) {
	return load(def, func(op *pb.Op) (*pb.Op, error) { return op, nil })
}
