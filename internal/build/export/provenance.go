package export

import (
	"context"
	"encoding/json"
)

// Provenance tells how a result came to be.
type Provenance struct{}

func (p *Provenance) attestation(t *target) attestation {
	return attestation{predicate: func(context.Context) (json.RawMessage, error) { return nil, nil }}
}
