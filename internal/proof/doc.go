// Package proof holds the tests of Corten's promises as a whole: engines, clients and monitors are killed at random moments under load, and nothing may be lost or left behind.
//
// It owns no code of the product.
package proof
